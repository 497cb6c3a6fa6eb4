"""Ours beside anomalib: the same images, pixels, weights file, splits, steps and metrics, one model per image.

    python -m venv peer
    peer/bin/pip install torch==2.13.0 'anomalib[openvino]==2.7.0' torchvision==0.28.0
    .venv/bin/python benchmarks/peers/compare.py --peer-python peer/bin/python \\
        --weights "$EDGE_AD_DATA/weights/resnet18_imagenet_convs.safetensors" --data "$EDGE_AD_DATA/bsdata" ...

Both sides are trained on the images that ours fits on, decoded and resized by ours, and PaDiM on the same channels; the
methods' own choices (STFPM's validation images, schedules but for the steps) are left to each. Results go to a file of
JSON lines as they come: run the same command again to continue.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edge_ad.data.cache import open_cache
from edge_ad.data.layouts import Dataset, read_dataset
from edge_ad.evaluation.evaluate import Predictor, evaluate
from edge_ad.methods import create_model
from edge_ad.methods.gradient import GradientModel
from edge_ad.methods.padim import Padim
from edge_ad.runtime.raw_result import RawResult
from edge_ad.setups import SETUPS
from edge_ad.tiling import Size
from edge_ad.training.run_detector import run_detector
from edge_ad.training.trainer import TrainingImages, read_training_images, train

METHODS = ("padim", "patchcore", "stfpm", "fastflow", "reverse_distillation")
SETUP = SETUPS["sm256"]
WORKER = Path(__file__).with_name("anomalib_worker.py")
# torchvision has no CPU build to go with torch's: two operators that it wants to see at import
SITE = """
import torch
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

Figures = dict[str, float | None]
Line = Mapping[str, Any]  # figures, and whose they are


@dataclass(frozen=True)
class Given:
    """Outputs computed elsewhere, as a `Predictor` that is asked for all images at once."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]

    @property
    def image_size(self) -> Size:
        """See `Predictor`."""
        height, width = self.maps.shape[1:]
        return height, width

    def raw(self, images: NDArray[np.uint8]) -> RawResult:
        """See `Predictor`."""
        return RawResult(self.scores, self.maps, self.scores[:, None], {})


@dataclass(frozen=True)
class Data:
    """One set, decoded: images to fit on and test images uint8 (N, h, w, 3)."""

    dataset: Dataset
    images: TrainingImages
    test: NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What both sides are told."""

    peer_python: Path
    weights: Path
    steps: int
    batch_size: int
    coreset_ratio: float


def ours(method: str, seed: int, data: Data, options: Options) -> Figures:
    """Figures of this project's model in torch float32."""
    config: dict[str, Any] = {"backbone": "resnet18", "weights": str(options.weights)}
    if method == "padim":
        config["seed"] = seed  # of its channels
    if method == "patchcore":
        config["coreset_ratio"] = options.coreset_ratio
    model = create_model(method, SETUP.tile_size, **config)
    if isinstance(model, GradientModel):
        config |= {"steps": options.steps, "batch_size": options.batch_size}
        model = create_model(method, SETUP.tile_size, **config)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = train(model, SETUP, data.images, Path(folder) / "run", seed=seed)
        training_s = time.perf_counter() - start
        with run_detector(run, batch_size=8) as detector:
            return _figures(detector, data, training_s, batch_size=8)


def theirs(method: str, seed: int, data: Data, options: Options) -> Figures:
    """Figures of anomalib's model, trained in its own process and environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        channels = {"channels": _padim_channels(seed, options)} if method == "padim" else {}
        np.savez(folder / "in.npz", train=data.images.fit, test=data.test, **channels)
        command = [options.peer_python, WORKER, method, options.weights, folder / "in.npz", folder / "out.npz"]
        numbers = {"--steps": options.steps, "--batch-size": options.batch_size, "--seed": seed}
        numbers |= {"--coreset-ratio": options.coreset_ratio}
        subprocess.run(
            [str(part) for part in (*command, *(each for pair in numbers.items() for each in pair))],
            check=True,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdout=sys.stderr,
        )
        found = np.load(folder / "out.npz")
        given = Given(found["scores"].astype(np.float32), found["maps"].astype(np.float32))
        return _figures(given, data, float(found["training_s"]), batch_size=len(data.test))


def _padim_channels(seed: int, options: Options) -> NDArray[np.int64]:
    """The channels that our PaDiM draws, numbered through its layers."""
    model = create_model("padim", SETUP.tile_size, backbone="resnet18", weights=str(options.weights), seed=seed)
    assert isinstance(model, Padim)
    return model.channels.numpy()


def _figures(predictor: Predictor, data: Data, training_s: float, *, batch_size: int) -> Figures:
    found = evaluate(predictor, data.test, data.dataset.test, threshold=0.0, batch_size=batch_size)
    aupro = found.pixel.metrics.aupro if found.pixel else None
    return {"auroc": found.image.auroc, "aupro": aupro, "training_s": training_s}


SIDES = {"ours": ours, "anomalib": theirs}


PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--peer-python", type=PATH, required=True, help="Of its environment.")
@click.option("--weights", type=PATH, required=True, help="ResNet18 under timm's names, safetensors.")
@click.option("--data", type=PATH, multiple=True, required=True, help="MVTec layout, one category.")
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--steps", default=200, show_default=True, help="Of methods trained by gradient descent.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--coreset-ratio", default=0.1, show_default=True, help="PatchCore's; theirs takes GBs from 0.02 on.")
@click.option("--seeds", default=1, show_default=True, help="Runs of each, their figures averaged.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON lines; continued if there.")
def main(
    peer_python: Path,
    weights: Path,
    data: tuple[Path, ...],
    methods: str,
    steps: int,
    batch_size: int,
    coreset_ratio: float,
    seeds: int,
    output: Path,
) -> None:
    """Train and score with both, and print a table."""
    options = Options(peer_python, weights.resolve(), steps, batch_size, coreset_ratio)
    lines = list(_read(output, options))
    done = {(line["method"], line["data"], line["seed"], line["side"]) for line in lines}
    for root in data:
        dataset = read_dataset(root, "mvtec", None)
        images = read_training_images(dataset, SETUP, root=root, layout="mvtec", category=None, seed=0)
        decoded = Data(dataset, images, open_cache(dataset.test, SETUP.image_size).images)
        for method, seed, (side, run) in itertools.product(methods.split(","), range(seeds), SIDES.items()):
            if (method, root.name, seed, side) not in done:
                line = {"method": method, "data": root.name, "seed": seed, "side": side}
                line |= {"steps": steps, "batch": batch_size, "coreset_ratio": coreset_ratio}
                line |= run(method, seed, decoded, options)
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                click.echo(json.dumps(line), err=True)
                lines.append(line)
    click.echo(table(lines))


def _read(output: Path, options: Options) -> Iterator[Line]:
    """Lines that are there already, made with the same schedule."""
    for line in output.read_text(encoding="utf-8").splitlines() if output.exists() else ():
        found = json.loads(line)
        told = (found["steps"], found["batch"], found["coreset_ratio"])
        if told == (options.steps, options.batch_size, options.coreset_ratio):
            yield found


def table(lines: Sequence[Line]) -> str:
    """Image AUROC / AUPRO in per cent: a row per method and set and a mean over sets, ours beside theirs.

    Seeds are averaged; a set counts for a method where both sides are there.
    """
    sides = list(SIDES)
    rows = [f"| method | set | {' | '.join(sides)} | difference | {' | '.join(f'{side}, s' for side in sides)} |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for method in dict.fromkeys(line["method"] for line in lines):
        of_method = [line for line in lines if line["method"] == method]
        pairs = []
        for name in dict.fromkeys(line["data"] for line in of_method):
            seeds = [[line for line in of_method if (line["data"], line["side"]) == (name, side)] for side in sides]
            if all(seeds):
                pairs.append([_mean(each) for each in seeds])
                rows.append(_row(method, name, *pairs[-1]))
        if pairs:
            rows.append(_row(method, "**mean**", *(_mean(side) for side in zip(*pairs, strict=True))))
    return "\n".join(rows)


def _mean(lines: Sequence[Line]) -> Figures:
    keys = ("auroc", "aupro", "training_s")
    there = {key: [line[key] for line in lines if line[key] is not None] for key in keys}
    return {key: fmean(values) if values else None for key, values in there.items()}


def _row(method: str, name: str, mine: Line, other: Line) -> str:
    difference = {
        key: None if mine[key] is None or other[key] is None else mine[key] - other[key] for key in ("auroc", "aupro")
    }
    cells = (_pair(mine), _pair(other), _pair(difference, sign="+"), f"{mine['training_s']:.0f}")
    return f"| {method} | {name} | {' | '.join(cells)} | {other['training_s']:.0f} |"


def _pair(figures: Line, sign: str = "") -> str:
    return " / ".join(
        "-" if figures[key] is None else format(100 * figures[key], f"{sign}.1f") for key in ("auroc", "aupro")
    )


if __name__ == "__main__":
    main()
