"""``edge-ad demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder.")
@click.pass_obj
def command(obj: dict[str, bool], output: Path) -> None:
    """Run the whole road on synthetic plates.

    Plates with small defects are drawn, PaDiM is trained on the good ones, one model per tile location, exported to an
    int8 bundle, run, evaluated and timed. OUTPUT/index.html shows it all. No data and no network are needed; it takes
    two to three minutes on two cores.
    """
    from edge_ad.demo import run_demo
    from edge_ad.progress import terminal_progress

    with terminal_progress(not obj["quiet"]) as progress:
        demo = run_demo(output, progress)
    image, latency = demo.exported.image, demo.benchmark.latency
    click.echo(
        f"{demo.page}: image AUROC {image.auroc:.3f} (trained model {demo.trained.image.auroc:.3f}), "
        f"{latency.end_to_end.mean_ms:.0f} ms per image, {latency.bare_ratio:.3f} x its bare graphs"
    )
