from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_bundle import some_image, tiny_manifest, tiny_setup

from edge_ad.bundle.manifest import Normalisation, NormalisationStage, Scale
from edge_ad.cli import main
from edge_ad.imaging import write_png


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout as JSON: anything else on it is an error."""
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls ``edge-ad`` with these arguments in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(exit_info.value.code or 0, out, err)

    return call


@pytest.fixture
def bundle(tiny_bundle: Callable[..., Path]) -> Path:
    """A tiny bundle that finds noise anomalous."""
    scales = Scale(0.2, 0.8), Scale(0.1, 0.9)
    return tiny_bundle(tiny_manifest(normalisation=Normalisation(NormalisationStage.IMAGE, "fixed", *scales, (), ())))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a grey image, normal for `bundle`, and a noisy one, anomalous."""
    folder = tmp_path / "images"
    size = tiny_setup().image_size
    write_png(folder / "grey.png", np.full((*size, 3), 90, np.uint8))
    write_png(folder / "noise.png", some_image(tiny_setup()))
    return folder
