"""The graphs of a bundle one after the other, each read and checked while the one before it is compiled."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Lock

from edge_ad.bundle.files import read_graph
from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Graph, Manifest
from edge_ad.workers import Workers


class GraphReader:
    """Reads graphs of the bundle at ``root``, ahead of those who ask for them in the manifest's order.

    Several threads may ask, and are served one after the other. Once closed it still reads, but nothing ahead.

    Args:
        ahead: read ahead; costs the memory of a second graph.
    """

    def __init__(self, root: Path, manifest: Manifest, *, ahead: bool = True) -> None:
        self._root = root
        self._format = manifest.format
        self._graphs = manifest.in_running_order
        self._thread = Workers(1, "edge-ad-reader") if ahead else None
        self._ahead: tuple[Graph, Future[GraphFiles]] | None = None
        self._lock = Lock()

    def read(self, graph: Graph) -> GraphFiles:
        """See `read_graph`."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
            files = ahead[1].result() if ahead and ahead[0] is graph else read_graph(self._root, graph, self._format)
            following = self._graphs.index(graph) + 1
            if self._thread and following < len(self._graphs):
                after = self._graphs[following]
                self._ahead = after, self._thread.submit(partial(read_graph, self._root, after, self._format))
            return files

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            thread, self._thread, self._ahead = self._thread, None, None
        if thread:
            thread.close()
