from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # graphs are tiny here: threads would spend their time on waiting

import pytest
from hypothesis import settings
from tiny_bundle import write_tiny_bundle

from edge_ad.bundle.manifest import Format, Manifest

# A loaded machine is slow at times, and a failure has to come again when the suite is run again
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file to a worker, for its module fixtures; the contract suite, which is the longest, method by method."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrMethod(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            method = re.search(r"(\w+)\]$", nodeid)
            return f"{file}: {method[1]}" if file.endswith("test_contract.py") and method else file

    return ByFileOrMethod(config, log)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go beside the tests' other files, those of module fixtures too: never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_AD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images that ``EDGE_AD_DATA`` names."""
    root = os.environ.get("EDGE_AD_DATA")
    if not root:
        pytest.skip("EDGE_AD_DATA names no folder of real images")
    return Path(root)


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a whole bundle below ``tmp_path`` and returns its folder; see tiny_bundle.py."""

    def write(
        manifest: Manifest | None = None, graph_format: Format = Format.OPENVINO, name: str = "tiny.edgead"
    ) -> Path:
        return write_tiny_bundle(tmp_path / name, manifest, graph_format)

    return write
