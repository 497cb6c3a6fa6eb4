"""The statistics that batch normalisation keeps of its inputs: measured anew, and left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def measured_anew(module: nn.Module) -> Iterator[bool]:
    """Forget the statistics of ``module``; what it sees inside, in training mode, is measured, every batch alike.

    Yields:
        Whether there is any batch normalisation in it.

    Source: Wu and Johnson, "Rethinking Batch in BatchNorm", arXiv 2105.07576, section 3 ("PreciseBN"): while weights
    move, running averages lag; after 20 steps an eighth of them is still what they began as.
    """
    momenta = {layer: layer.momentum for layer in _layers(module)}
    for layer in momenta:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean of all batches
    try:
        yield bool(momenta)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


@contextmanager
def left_alone(module: nn.Module) -> Iterator[None]:
    """What ``module`` sees inside, in training mode, is normalised by its own batch and leaves no trace."""
    tracking = [layer for layer in _layers(module) if layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
