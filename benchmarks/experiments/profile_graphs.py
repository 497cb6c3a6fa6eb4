"""Where the time of an image goes inside a bundle's graphs: by kind of operation, as OpenVINO counts it.

    python benchmarks/experiments/profile_graphs.py BUNDLE [--runs 50] [--at-least 2]

The extractor and the first head are compiled with counters, as the runtime would compile them alone, and run on noise;
counting slows them a little, so read shares. All heads are taken to be like the first.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import numpy as np
import openvino as ov

from edge_ad.bundle.files import read_manifest
from edge_ad.bundle.manifest import Graph
from edge_ad.runtime.processor import bf16_is_slow


def milliseconds(bundle: Path, graph: Graph, runs: int) -> Counter[tuple[str, str]]:
    """Of one run, by operation and the kernel that executes it."""
    config = {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"}
    if graph.keep_f32 or bf16_is_slow():
        config["INFERENCE_PRECISION_HINT"] = "f32"
    core = ov.Core()
    model = core.read_model(bundle / graph.files[0].path)
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    request = core.compile_model(model, "CPU", config).create_infer_request()
    rng = np.random.default_rng(0)
    for port in request.model_inputs:
        values = rng.integers(0, 256, tuple(port.shape), dtype=np.uint8)
        request.set_tensor(port.any_name, ov.Tensor(values.astype(port.element_type.to_dtype())))
    found: Counter[tuple[str, str]] = Counter()
    for index in range(-5, runs):  # the first ones warm up
        request.infer()
        for each in request.profiling_info if index >= 0 else ():
            found[each.node_type, each.exec_type] += each.real_time.total_seconds() * 1000 / runs
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--runs", default=50, show_default=True)
@click.option("--at-least", default=2.0, show_default=True, help="Per cent of an image: less is summed up.")
def main(bundle: Path, runs: int, at_least: float) -> None:
    """Print a markdown table."""
    manifest = read_manifest(bundle)
    tiles = len(manifest.setup.locations)
    times = {"head": (manifest.heads[0], tiles)}
    if manifest.shared:
        times["extractor"] = (manifest.shared, manifest.runs_per_image(manifest.shared))
    rows = [
        (name, operation, kernel, ms * count)
        for name, (graph, count) in times.items()
        for (operation, kernel), ms in milliseconds(bundle, graph, runs).items()
    ]
    total = sum(ms for *_, ms in rows)
    click.echo(f"{bundle}: {total:.1f} ms per image inside the graphs, {tiles} tiles\n")
    click.echo("| graph | operation | kernel | ms per image | share |")
    click.echo("| --- | --- | --- | ---: | ---: |")
    shown = [row for row in rows if row[3] >= at_least / 100 * total]
    for name, operation, kernel, ms in sorted(shown, key=lambda row: -row[3]):
        click.echo(f"| {name} | {operation} | {kernel} | {ms:.1f} | {ms / total:.0%} |")
    rest = total - sum(ms for *_, ms in shown)
    click.echo(f"| both | {len(rows) - len(shown)} others | | {rest:.1f} | {rest / total:.0%} |")


if __name__ == "__main__":
    main()
