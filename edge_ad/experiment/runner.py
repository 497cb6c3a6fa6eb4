"""Runs the cells of an experiment that have no results yet, one after the other or several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from edge_ad.errors import ConfigError, EdgeAdError, InputError, ResultsError
from edge_ad.experiment.config import Config
from edge_ad.experiment.grid import Cell, cells
from edge_ad.experiment.measure import run_cell
from edge_ad.experiment.record import Identity, Record
from edge_ad.experiment.store import Store
from edge_ad.methods import method_class
from edge_ad.methods.parameters import check_parameters
from edge_ad.progress import Progress, no_progress
from edge_ad.records import from_plain
from edge_ad.runtime.processor import cpu_shares, stay_on, usable_cpus
from edge_ad.training.trainer import open_device

_FIXED = ("backbone", "layers", "weights", "seed")  # by other keys of the configuration, if the method has a backbone


@dataclass(frozen=True)
class Job:
    """A cell, and those of its lines that are not there yet."""

    cell: Cell
    todo: tuple[Identity, ...]


@dataclass(frozen=True)
class Plan:
    """What an experiment holds and lacks.

    Attributes:
        records: lines of this experiment that are there, failures too.
        jobs: what is to be computed; failures are tried again.
        lines: number of lines of the whole experiment.
    """

    records: tuple[Record, ...]
    jobs: tuple[Job, ...]
    lines: int


def store_of(folder: Path) -> Store:
    """The results below an experiment's folder."""
    return Store(Path(folder) / "results.jsonl")


def make_plan(config: Config, folder: Path, *, recompute: bool = False) -> Plan:
    """Compare an experiment with the results in ``folder``.

    Args:
        recompute: lines made with other settings count as not there, instead of being refused; failures always do.

    Raises:
        ResultsError: results are damaged, or were made with other settings.
        InputError: a method does not have a parameter.
        ConfigError: a parameter has another type.
        DataNotFoundError, LayoutError: see `cells`.
    """
    _check_parameters(config)
    found = store_of(folder).read()
    records, jobs, lines = [], [], 0
    for cell in cells(config):
        todo = []
        for identity in cell.identities:
            lines += 1
            record = found.get(identity)
            if record is not None and not _alike(record.settings, here := cell.settings(identity.precision)):
                if record.outcome is not None and not recompute:
                    raise _other_settings(folder, record, here)
                record = None
            if record is not None:
                records.append(record)
            if record is None or record.outcome is None:
                todo.append(identity)
        if todo:
            jobs.append(Job(cell, tuple(todo)))
    return Plan(tuple(records), tuple(jobs), lines)


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    processes: int = 1,
    keep: bool = False,
    told: Callable[[Record], object] = lambda record: None,
    progress: Progress = no_progress,
) -> None:
    """Compute ``jobs`` and append their lines to the results; a cell that fails is a line too.

    Args:
        processes: cells at a time, each with its part of the CPUs.
        keep: keep run folders and bundles.
        told: called with every line once it is on disk.
        progress: of the work inside a cell; with one process only.

    Raises:
        InputError: several processes, and a benchmark among the jobs.
        DeviceNotFoundError: a training device is not here; nothing is computed.
        EdgeAdError: a process died; what was written stays.
        OutputWriteError: the results cannot be written.
    """
    if processes > 1 and any(job.cell.benchmark for job in jobs):
        raise InputError("a benchmark beside other work times both: use --jobs 1, or leave [benchmark] out")
    for device in {job.cell.config.training_device for job in jobs}:
        open_device(device)
    store = store_of(folder)
    store.repair()

    def emit(record: Record) -> None:
        store.append(record)
        told(record)

    if processes == 1:
        for job in jobs:
            run_cell(job.cell, folder, job.todo, emit, keep=keep, progress=progress)
        return
    threads = max(1, usable_cpus() // processes)
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads
    shares = context.SimpleQueue()
    for share in cpu_shares(processes):
        shares.put(share)
    with ProcessPoolExecutor(processes, context, _begin_worker, (threads, shares)) as pool:
        futures = [pool.submit(_collect, job, folder, threads, keep) for job in jobs]
        try:
            for future in as_completed(futures):
                for record in future.result():
                    emit(record)
        except BrokenProcessPool as error:
            raise EdgeAdError(
                "a process died, perhaps for want of memory; run again with fewer --jobs to continue"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(threads: int, shares: SimpleQueue[set[int]]) -> None:
    stay_on(shares.get())  # before any engine: NNCF, for one, cannot be told a number of threads
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: end at once, without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on in the very folders that the next call continues."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _collect(job: Job, folder: Path, threads: int, keep: bool) -> list[Record]:
    records: list[Record] = []
    run_cell(job.cell, folder, job.todo, records.append, threads=threads, keep=keep)
    return records


def _check_parameters(config: Config) -> None:
    for method, given in config.parameters.items():
        known = check_parameters(method_class(method), given)
        if fixed := [key for key in given if key in _FIXED and "backbone" in known]:
            raise ConfigError(f"parameters.{method}: {fixed[0]} belongs to backbones or seeds")
        for key, value in given.items():
            from_plain(known[key], value, f"parameters.{method}.{key}", ConfigError)


def _alike(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a line's settings are a cell's.

    Files are compared where both know what they are: older lines do not, nor is one known that is not at hand.
    """
    old, new = there.get("files", {}), here.get("files", {})
    others = [{key: value for key, value in settings.items() if key != "files"} for settings in (there, here)]
    return others[0] == others[1] and all(old[key] == new[key] for key in old.keys() & new.keys())


def _other_settings(folder: Path, record: Record, settings: Mapping[str, object]) -> ResultsError:
    differences = "; ".join(_differences(record.settings, settings))
    return ResultsError(
        f"{folder} holds results of {record.identity} with other settings ({differences}); "
        "choose another -o, or pass --recompute"
    )


def _differences(there: Mapping[str, object], here: Mapping[str, object]) -> Iterator[str]:
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key, "nothing"), here.get(key, "nothing")
        if old != new:
            yield f"{key}: {old} there, {new} here"
