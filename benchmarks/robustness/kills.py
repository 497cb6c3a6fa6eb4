"""kill -9 at random moments of train, export and experiment: does the same command, repeated, end in the same files?

    python benchmarks/robustness/kills.py             # 200 kills
    python benchmarks/robustness/kills.py --kills 6

A tiny run on synthetic plates. Each command first runs undisturbed, for its duration and its result. Then it is killed
at a random moment, once or twice, and repeated until it ends by itself: what is in the output folder then, byte for
byte and hidden files too, must be what an undisturbed run leaves. Of an experiment the results are compared, without
times and memory. SOURCE_DATE_EPOCH is set.

Children are forked by a process that has imported everything, so that kills meet work and not imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"SOURCE_DATE_EPOCH": "1700000000", "OMP_NUM_THREADS": "1", "CI": "true"}

import nncf  # noqa: F401 - imported here so that no child has to
import openvino  # noqa: F401
import torch  # noqa: F401

import edge_ad.cli.experiment
import edge_ad.cli.export
import edge_ad.cli.train
import edge_ad.experiment.runner
import edge_ad.exporters.export
import edge_ad.training.trainer  # noqa: F401
from edge_ad.cli import main as edge_ad_main
from edge_ad.data.synthetic import write_synthetic

KILLS_PER_RUN = 2
GRID = """
methods = ["padim"]
setups = ["sm256", {{name = "small", image_size = [64, 64], tile_size = [32, 32], sharing = "all"}}]
precisions = ["torch"]
[[datasets]]
path = "{plates}"
[[backbones]]
name = "test_resnet"
weights = "none"
[parameters.padim]
dimensions = 9
"""


def start(arguments: list[str]) -> int:
    """The process of ``edge-ad`` with these arguments."""
    child = os.fork()
    if child:
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        edge_ad_main(arguments)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)


def finish(child: int) -> int:
    """Its exit code, below 0 where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(arguments: list[str], after_s: float) -> bool:
    """Whether the command was still running after that time; it is not any more."""
    child = start(arguments)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return finish(child) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file, hidden ones among them, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Command:
    """One command line whose output lies in ``folder``."""

    def __init__(self, name: str, folder: Path, arguments: list[str], see: Callable[[Path], object] = contents) -> None:
        self.name, self.folder, self.arguments, self.see = name, folder, arguments, see
        begun = time.monotonic()
        if (code := finish(start(arguments))) != 0:
            sys.exit(f"{name}: the undisturbed run failed with {code}: edge-ad {' '.join(arguments)}")
        self.duration_s = time.monotonic() - begun
        self.expected = see(folder.parent)

    def disturb(self, draw: random.Random, kills: int) -> tuple[int, bool]:
        """Begin anew, kill up to ``kills`` times, let it end: how many kills met it, and is the result as expected?"""
        shutil.rmtree(self.folder.parent)
        self.folder.parent.mkdir()
        met = sum(killed(self.arguments, draw.uniform(0, self.duration_s)) for _ in range(kills))
        again = [*self.arguments, "--overwrite"] if self.name == "export" and self.folder.exists() else self.arguments
        code = finish(start(again))
        found = self.see(self.folder.parent)
        if code != 0 or found != self.expected:
            print(f"{self.name}: exit code {code} after {met} kills; {_difference(self.expected, found)}", flush=True)
        return met, code == 0 and found == self.expected


def _difference(expected: object, found: object) -> str:
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return f"expected {expected}, but got {found}"
    names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return f"these files differ: {', '.join(names)}"


def results(folder: Path) -> object:
    """The lines of an experiment's results, without what may differ: their order, times and memory."""
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    return sorted(json.dumps(_steady(json.loads(line)), sort_keys=True) for line in lines)


def _steady(value: object) -> object:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if not key.endswith(("_s", "_ms", "_utc", "_bytes"))}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Run, and exit with 1 where a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["EDGE_AD_CACHE"] = str(root / "cache")
        plates = write_synthetic(root / "plates", size=(64, 64), train=8, test_good=2, test_defective=2)
        tiny = ["--backbone", "test_resnet", "--weights", "none", "-p", "dimensions=9"]
        tiny += ["--image-size", "64", "--tile-size", "32"]
        train = ["-q", "train", "--data", str(plates), *tiny, "-o", str(root / "a" / "run")]
        run = root / "run"
        commands = [Command("train", root / "a" / "run", train)]
        shutil.copytree(root / "a" / "run", run)
        export = ["-q", "export", str(run), "--precision", "fp32", "-o", str(root / "b" / "out.edgead")]
        commands.append(Command("export", root / "b" / "out.edgead", export))
        (root / "grid.toml").write_text(GRID.format(plates=plates))
        grid = ["-q", "experiment", str(root / "grid.toml"), "-o", str(root / "c" / "out")]
        commands.append(Command("experiment", root / "c" / "out", grid, results))
        met, survived, rounds = 0, 0, 0
        while met < options.kills:
            command = commands[rounds % len(commands)]
            kills, same = command.disturb(draw, min(draw.randint(1, KILLS_PER_RUN), options.kills - met))
            met, survived, rounds = met + kills, survived + kills * same, rounds + 1
    print(f"kills survived {survived}/{met} ({', '.join(f'{c.name} {c.duration_s:.1f} s' for c in commands)})")
    sys.exit(survived != met)


if __name__ == "__main__":
    main()
