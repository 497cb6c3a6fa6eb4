"""Our sessions beside OpenVINO's own `benchmark_app`, on the same graphs: what the runtime adds to a bare inference.

    python benchmarks/peers/engine_tool.py BUNDLE... [--rounds 3] [--warmup 20] [--iterations 200]

The extractor and the first head of each bundle on the CPU, one request at a time, in the engine's latency mode and the
precision that our session reports. The tool, a process of its own, fills inputs once and times the engine's call; ours
is timed with its inputs as `Session.run` takes them. They take turns, and the medians of all turns are compared.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from shutil import which
from statistics import median

import click
import numpy as np

from edge_ad.benchmarks.timing import time_interleaved
from edge_ad.bundle.files import read_manifest
from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Format, Graph
from edge_ad.runtime.session import ExecutionPrecision, Session
from edge_ad.runtime.sessions import open_session

MEDIAN = re.compile(r"Median:\s*([0-9.]+) ms")


def open_graph(bundle: Path, graph: Graph) -> Session:
    """As `edge_ad.load` opens it."""
    files = GraphFiles.read(bundle / graph.files[0].path, Format.OPENVINO)
    precision = ExecutionPrecision.F32 if graph.keep_f32 else ExecutionPrecision.AUTO
    return open_session(files, Format.OPENVINO, precision=precision)


def ours(session: Session, warmup: int, iterations: int) -> list[float]:
    """Samples in ms, on noise."""
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype)  # uint8, and small numbers for features
        for name, spec in session.inputs.items()
    }
    return list(time_interleaved({"run": lambda: session.run(feeds)}, warmup, iterations)["run"].samples_ms)


def tools(graph: Path, session: Session, iterations: int) -> float:
    """The median in ms that `benchmark_app` prints."""
    shapes = ",".join(f"{name}{list(spec.shape)}".replace(" ", "") for name, spec in session.inputs.items())
    tool = which("benchmark_app")
    if tool is None:
        raise click.ClickException("benchmark_app, which comes with openvino, is not on the PATH")
    options = {"-m": graph, "-d": "CPU", "-api": "sync", "-hint": "latency", "-shape": shapes, "-niter": iterations}
    options |= {"-infer_precision": session.precision}
    command = [tool, *(str(part) for pair in options.items() for part in pair)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = MEDIAN.search(printed)
    if found is None:
        raise click.ClickException(f"benchmark_app printed no median:\n{printed}")
    return float(found[1])


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, show_default=True, help="Turns of each side.")
@click.option("--warmup", default=20, show_default=True, help="Our untimed runs per turn; the tool has one.")
@click.option("--iterations", default=200, show_default=True, help="Timed runs per turn.")
def main(bundles: tuple[Path, ...], rounds: int, warmup: int, iterations: int) -> None:
    """Print a markdown table of medians."""
    click.echo("| bundle | graph | precision | ours, ms | benchmark_app, ms | ours / its |")
    click.echo("| --- | --- | --- | ---: | ---: | ---: |")
    for bundle in bundles:
        manifest = read_manifest(bundle)
        for graph in (*([manifest.shared] if manifest.shared else []), manifest.heads[0]):
            session = open_graph(bundle, graph)
            our_ms: list[float] = []
            their_ms: list[float] = []
            for _ in range(rounds):
                our_ms += ours(session, warmup, iterations)
                their_ms.append(tools(bundle / graph.files[0].path, session, iterations))
            session.close()
            mine, its = median(our_ms), median(their_ms)
            name = "extractor" if graph is manifest.shared else "head"
            click.echo(f"| {bundle.name} | {name} | {session.precision} | {mine:.2f} | {its:.2f} | {mine / its:.3f} |")


if __name__ == "__main__":
    main()
