from __future__ import annotations

import re

import pytest

from edge_ad import demo
from edge_ad.errors import OutputExistsError


@pytest.mark.slow
def test_the_demo_leaves_a_page_of_what_it_made(tmp_path):
    small = {"setup": "sm256", "train": 8, "test_good": 3, "test_defective": 4, "iterations": 3}
    made = demo.run_demo(tmp_path / "demo", **small)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *("index.html", "benchmark.json", "bundle.edgead", "data", "evaluation", "predictions", "run")
    }
    assert (made.exported.image.normal, made.exported.image.anomalous) == (3, 4)
    text = made.page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2 + 2 + 4  # tiles, curves, two good plates, one of each defect
    assert not re.search(r"""(src|href)=["']?https?:""", text)  # nothing is loaded from elsewhere
    assert f"<dd>{made.exported.image.auroc:.3f}</dd>" in text
    assert f"<dd>{made.benchmark.latency_ms:.0f} ms</dd>" in text
    assert "Shortened EfficientAD protocol" in text

    heads = (tmp_path / "demo" / "run" / "tile_models").glob("*")
    before = {path: path.stat().st_mtime_ns for path in heads}
    demo.run_demo(tmp_path / "demo", **small)  # trained models are used again
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="is not empty and holds no earlier demo; choose another -o"):
        demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
