"""Who may import whom: the table in docs/architecture.md, enforced. And what imports may not load at run time."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "torchvision", "timm", "openvino", "onnxruntime", "onnx", "nncf", "cv2", "sklearn", "matplotlib"),
    "cryptography",
}
IMPORT_NAMES = {"OpenCV": "cv2", "scikit-learn": "sklearn"}  # where the package is called otherwise than its module
SCRIPTS = (
    "peers",
    "experiments",
    "robustness",
)  # folders of scripts, which use the package and are not installed with it


@dataclass(frozen=True)
class Room:
    """A row of the table. ``in_one_file`` maps a module to the pattern of the files of the room that may import it."""

    path: Path
    third_party: frozenset[str]
    in_one_file: dict[str, str]
    rooms: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def files(self) -> list[Path]:
        files = [self.path] if self.path.suffix else sorted(self.path.rglob("*.py"))
        return [file for file in files if file.parent.name not in SCRIPTS]


def read_rooms(markdown: str) -> dict[str, Room]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    rows = [row for row in rows if row[0].startswith("`")]
    paths = [ROOT / re.match(r"`([^`]+)`", row[0])[1] for row in rows]
    names = [path.stem for path in paths]
    rooms = {}
    for index, (path, (_, _, third_party, allowed)) in enumerate(zip(paths, rows, strict=True)):
        everywhere, _, one_file = third_party.partition(";")
        rooms[path.stem] = Room(
            path,
            frozenset(IMPORT_NAMES.get(name, name) for name in _names(everywhere)),
            dict(re.findall(r"(\w+) in `([^`]+)`", one_file)),
            frozenset(_rooms(allowed, names, index)),
        )
    return rooms


def _names(cell: str) -> list[str]:
    return [] if cell.strip() == "-" else [name.strip() for name in cell.split(",") if name.strip()]


def _rooms(cell: str, names: list[str], index: int) -> Iterator[str]:
    cell = re.sub(r"\([^)]*\)", "", cell.partition(";")[0])
    for name in _names(cell):
        match name:
            case "the above":
                yield from names[:index]
            case "all":
                yield from names
            case "all but cli":
                yield from (name for name in names if name != "cli")
            case _:
                assert name in names, f"docs/architecture.md: no room {name!r}"
                yield name


def violations(source: str, file_name: str, room: Room) -> list[str]:
    """What ``source``, a file of ``room``, imports and may not."""
    found = []
    for module in _imported(ast.parse(source)):
        top, _, rest = module.partition(".")
        if top == "edge_ad":
            target = rest.partition(".")[0] or "runtime"  # `import edge_ad`: what it offers lies there
            if target not in room.rooms | {room.name, "__version__"}:
                found.append(f"{room.name}/{file_name} imports room {target}")
        elif top not in sys.stdlib_module_names | room.third_party and not fnmatch(
            file_name, room.in_one_file.get(top, "")
        ):
            found.append(f"{room.name}/{file_name} imports {top}")
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            whole = node.module == "edge_ad"
            yield from [f"edge_ad.{alias.name}" for alias in node.names] if whole else [node.module or ""]


ROOMS = read_rooms((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_the_table_names_every_room_and_no_other() -> None:
    inner = [path for path in (ROOT / "edge_ad").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    on_disk = {path.stem for path in inner if path.name != "__init__.py"} | {"exporters", "benchmarks"}
    assert set(ROOMS) == on_disk


@pytest.mark.parametrize("room", ROOMS.values(), ids=lambda room: room.name)
def test_room_imports_only_what_the_table_allows(room: Room) -> None:
    assert room.files
    for file in room.files:
        assert violations(file.read_text(encoding="utf-8"), file.name, room) == []


@pytest.mark.parametrize("room", ROOMS.values(), ids=lambda room: room.name)
def test_the_table_allows_no_package_that_is_not_used(room: Room) -> None:
    used = {module.partition(".")[0] for file in room.files for module in _imported(ast.parse(file.read_text("utf-8")))}
    assert room.third_party | set(room.in_one_file) <= used


REPORTING = {"openvino", "onnxruntime", "nncf"}


def reports(source: str) -> set[str]:
    """What ``source`` imports of `REPORTING` in other places than inside `no_telemetry`, types aside."""
    tree = ast.parse(source)
    silent = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.With) and "no_telemetry()" in map(ast.unparse, node.items))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in silent:
        node.body = []
    return REPORTING & {module.partition(".")[0] for module in _imported(tree)}


@pytest.mark.parametrize("room", ROOMS.values(), ids=lambda room: room.name)
def test_what_reports_to_its_makers_is_imported_without(room: Room) -> None:
    assert {file.name: found for file in room.files if (found := reports(file.read_text(encoding="utf-8")))} == {}


def test_reports_are_found() -> None:
    assert reports("import openvino as ov\nif x:\n from nncf.a import b") == {"openvino", "nncf"}
    assert reports("with no_telemetry():\n import openvino") == set()


def test_nothing_imports_cli() -> None:
    assert [room.name for room in ROOMS.values() if "cli" in room.rooms] == ["cli"]


@pytest.mark.parametrize(
    ("room", "file", "source", "found"),
    [
        ("runtime", "detector.py", "import torch.nn as nn", ["runtime/detector.py imports torch"]),
        ("runtime", "detector.py", "import openvino", ["runtime/detector.py imports openvino"]),
        ("runtime", "openvino_session.py", "import openvino", []),
        ("runtime", "result.py", "import numpy, cv2, json\nfrom edge_ad.tiling import Size", []),
        ("bundle", "files.py", "def f():\n from edge_ad.runtime import x", ["bundle/files.py imports room runtime"]),
        ("bundle", "files.py", "from edge_ad import __version__, cli, atomic", ["bundle/files.py imports room cli"]),
        ("training", "trainer.py", "import edge_ad.cli.train", ["training/trainer.py imports room cli"]),
        ("data", "cache.py", "import edge_ad", ["data/cache.py imports room runtime"]),
        ("tiling", "tiling.py", "from cv2 import resize", ["tiling/tiling.py imports cv2"]),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(room: str, file: str, source: str, found: list[str]) -> None:
    assert violations(source, file, ROOMS[room]) == found


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import edge_ad", set()),
        ("import edge_ad.bundle.files", set()),
        ("import edge_ad.runtime.detector", {"cv2"}),
        ("import edge_ad.runtime.openvino_session", {"cv2", "openvino"}),
        ("import edge_ad.benchmarks.run", {"cv2", "openvino"}),
        ("from edge_ad.cli import main; main(['--help'])", set()),
    ],
)  # fmt: skip
def test_what_an_import_loads(code: str, allowed: set[str]) -> None:
    probe = f"import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules)); {code}"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.rpartition("loaded")[2].split()}
    assert "numpy" in loaded
    assert loaded & HEAVY <= allowed
