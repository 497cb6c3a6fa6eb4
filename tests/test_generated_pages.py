from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import edge_ad

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("script", ["generate_cli.py", "generate_api.py"])
def test_generated_pages_are_fresh(script):
    generator = runpy.run_path(str(DOCS / script))
    assert generator["TARGET"].read_text(encoding="utf-8") == generator["render"](), "run `make docs`"


def test_the_page_of_the_python_interface_has_all_of_it():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    explained_elsewhere = {"TileGrid", "Verdict", "__version__", "errors"}
    assert [name for name in edge_ad.__all__ if f"\n## {name}\n" not in page] == sorted(explained_elsewhere)
    for kind in vars(edge_ad.errors).values():
        if isinstance(kind, type) and issubclass(kind, edge_ad.errors.EdgeAdError):
            assert f"`{kind.__name__}`" in page
