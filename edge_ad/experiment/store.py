"""The results of an experiment: ``results.jsonl``, one record a line, only ever appended to.

A line is on disk before the next is computed. A line cut short by a kill or a full disk is the last one, and is
dropped; of several lines of one identity the last counts. One process appends.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edge_ad import atomic
from edge_ad.errors import ResultsError
from edge_ad.experiment.record import SCHEMA_VERSION, Identity, Record, upgraded
from edge_ad.records import from_plain, to_plain


@dataclass(frozen=True)
class Store:
    """The file ``path``, which need not exist."""

    path: Path

    def read(self) -> dict[Identity, Record]:
        """The last record of every identity.

        Raises:
            ResultsError: a line other than a torn last one is damaged, or of another release.
        """
        records = {}
        for number, line in enumerate(self._whole_lines().splitlines(), 1):
            record = _parse(line, f"{self.path}:{number}")
            records[record.identity] = record
        return records

    def repair(self) -> None:
        """Cut off a torn last line, so that the next one begins on its own. Raises `OutputWriteError`."""
        if self.path.exists():
            with atomic.writing(self.path):
                os.truncate(self.path, len(self._whole_lines()))

    def append(self, record: Record) -> None:
        """Add a line and wait until it is on disk. Raises `OutputWriteError`."""
        line = json.dumps(to_plain(record), allow_nan=False, separators=(",", ":")) + "\n"
        with atomic.writing(self.path):
            if not self.path.exists():
                atomic.write_bytes(self.path, b"")  # on disk as a name too
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())

    def _whole_lines(self) -> bytes:
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]


def _parse(line: bytes, where: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{where} is damaged: {error}; delete that line, and its cell is computed again") from error
    value = upgraded(value) if isinstance(value, dict) else {}
    version = value.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"{where}: schema_version {version!r} is neither 1 nor {SCHEMA_VERSION}, which this edge-ad reads; "
            "choose another -o"
        )
    record: Record = from_plain(Record, value, where, ResultsError)
    return record
