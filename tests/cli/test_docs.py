from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "generate_cli.py"


def test_the_page_of_commands_is_fresh():
    generator = runpy.run_path(str(SCRIPT))
    assert generator["TARGET"].read_text(encoding="utf-8") == generator["render"](), "run `make docs`"
