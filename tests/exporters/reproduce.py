"""Train and export two methods into the folder that is named; tests/exporters/test_determinism.py runs it twice."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny_run import BACKBONE, scene_images, tile_setup

from edge_ad.bundle.manifest import Format, Precision
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.methods import create_model
from edge_ad.setups import Sharing
from edge_ad.training.trainer import train

METHODS = {"padim": {"dimensions": 9}, "stfpm": {"steps": 60, "batch_size": 4}}
EXPORTS = {
    "padim": [(graph_format, precision) for graph_format in Format for precision in (Precision.FP32, Precision.INT8)],
    "stfpm": [(Format.OPENVINO, Precision.INT8), (Format.ONNX, Precision.FP32)],
}


def main(folder: Path) -> None:
    setup = tile_setup(sharing=Sharing.ALL)
    images = scene_images(setup)
    for method, parameters in METHODS.items():
        torch.manual_seed(0)
        model = create_model(method, setup.tile_size, backbone=BACKBONE, weights="none", **parameters)
        run = train(model, setup, images, folder / method, seed=3)
        for graph_format, precision in EXPORTS[method]:
            options = ExportOptions(graph_format, precision, parity_tolerance=10)
            export_run(run, images, folder / f"{method}-{graph_format}-{precision}", options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
