"""A disk that is full at any point of train and export: one typed error, nothing half-written, a rerun that ends well.

    python benchmarks/robustness/full_disk.py
    python benchmarks/robustness/full_disk.py --steps 40

The output lies on a tmpfs of its own (root may mount one), which leaves between nothing and all of the room that the
command needs. What a failed command leaves must be readable as far as it goes: with room enough the same command ends
in the files of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kills import Command, contents, write_synthetic

from edge_ad.cli import main as edge_ad_main


def run(arguments: list[str], log: Path) -> int:
    """Exit code of ``edge-ad`` in a child, its stderr in ``log``."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            edge_ad_main(arguments)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Run, and exit with 1 where anything else happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="amounts of room, evenly spaced, per command")
    options = parser.parse_args()
    good = total = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["EDGE_AD_CACHE"] = str(root / "cache")
        plates = write_synthetic(root / "plates", size=(64, 64), train=8, test_good=2, test_defective=2)
        tiny = ["--backbone", "test_resnet", "--weights", "none", "-p", "dimensions=9"]
        tiny += ["--image-size", "64", "--tile-size", "32"]
        disk = root / "disk"
        disk.mkdir()
        train = ["-q", "train", "--data", str(plates), *tiny, "-o", str(disk / "out")]
        trained, train_bytes = prepare("train", disk, train)
        shutil.move(disk / "out", root / "run")
        export = ["-q", "export", str(root / "run"), "--precision", "fp32", "-o", str(disk / "out")]
        exported, export_bytes = prepare("export", disk, export)
        shutil.rmtree(disk / "out")
        for command, needed_bytes in ((trained, train_bytes), (exported, export_bytes)):
            for step in range(1, options.steps):
                good += survives(command, disk, step * needed_bytes // options.steps, root / "log")
                total += 1
    print(f"full disks survived {good}/{total}")
    sys.exit(good != total)


def prepare(name: str, disk: Path, arguments: list[str]) -> tuple[Command, int]:
    """The command, run undisturbed, and the room it needs: a page for every name, and whole pages of content."""
    command = Command(name, disk / "out", arguments)
    return command, 4096 * sum(-(-path.stat().st_size // 4096) + 1 for path in disk.rglob("*"))


def survives(command: Command, disk: Path, room_bytes: int, log: Path) -> bool:
    """One error, one line, nothing hidden; then the command ends well."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={max(room_bytes // 4096, 1) * 4096}", "edge-ad", disk], check=True
    )
    try:
        code, said = run(command.arguments, log), log.read_text(encoding="utf-8")
        hidden = [name for name in contents(disk) if any(part.startswith(".") for part in name.split("/"))]
        whole = command.name != "export" or not command.folder.exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = run(command.arguments, log)
        good = (code, said.count("\n"), hidden, whole, again) == (1, 1, [], True, 0)
        good = good and "cannot write" in said and command.see(disk) == command.expected
        if not good:
            print(
                f"{command.name}, {room_bytes} bytes of room: {code}, {said!r}, left {hidden}, then {again}", flush=True
            )
        return good
    finally:
        subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    main()
