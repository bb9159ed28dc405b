"""Prepare the records that a store lacks, in several processes, and append them to its files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdkit.utils.console import make_console
from kdkit.utils.processes import usable_cores
from kdkit_ecg.records.preparation import Preparation, PreparedSignal
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, Rows, make_row
from kdkit_ecg.utils.processes import run_in_processes

CHUNK = 4  # records that a process receives at a time; this many per process are lost if it is killed
RECORDS_PER_PROCESS = 64  # that justify starting a process: its imports take about two seconds
ALIGNMENT = 64  # bytes, a cache line: the offset of each signal is a multiple of it


def append_records(
    folder: Path,
    missing: Mapping[bytes, RecordSource],
    preparation: Preparation,
    processes: int | None,
    key_of: Callable[[RecordSource], bytes],
) -> Rows:
    """Prepare these records and append them to a store, with a progress bar on a terminal. The store must be locked.

    A chunk that cannot be written completely because the disk is full is removed again.
    missing: key -> source. Returns the rows of records that were not stored: their fault is transient, or their files
    changed during the preparation, so that their key is different now.
    """
    if not missing:
        return np.zeros(0, ROW)
    console = make_console(stderr=True)
    columns = (TextColumn("preparing records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    not_stored: list[bytes] = []
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        (folder / SIGNALS).open("ab", buffering=0) as signals,
        (folder / INDEX).open("ab", buffering=0) as index,
    ):
        task = progress.add_task("", total=len(missing))
        for keys, prepared in _prepare_in_chunks(missing, preparation, processes):
            pieces: list[bytes] = []  # of the file of signals
            rows: list[bytes] = []
            end = signals.seek(0, os.SEEK_END)
            for key, result in zip(keys, prepared, strict=True):
                offset = end
                if result.signal is not None:
                    offset += -end % ALIGNMENT
                    pieces += [bytes(offset - end), result.signal.astype("<f4").tobytes()]
                    end = offset + result.signal.nbytes
                row = make_row(key, result.content, offset, result.signal, result.fault or "")
                changed = result.transient or key_of(missing[key]) != key
                (not_stored if changed else rows).append(row)
            _append(signals, index, pieces, rows)
            progress.advance(task, len(keys))
        for file in (signals, index):
            os.fsync(file.fileno())
    return np.frombuffer(b"".join(not_stored), dtype=ROW)


def _prepare_in_chunks(
    missing: Mapping[bytes, RecordSource], preparation: Preparation, processes: int | None
) -> Iterator[tuple[Sequence[bytes], Sequence[PreparedSignal]]]:
    """Yield the keys and prepared signals of the records, a chunk at a time."""
    sources, keys = list(missing.values()), {source: key for key, source in missing.items()}
    chunks = [sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK)]
    if processes is None:
        processes = min(usable_cores(), max(1, len(missing) // RECORDS_PER_PROCESS))
    jobs = min(processes, len(chunks))
    # A method of Preparation, so that a worker process imports its module and not this one.
    prepare = preparation.prepare_all
    results = run_in_processes(prepare, chunks, jobs) if jobs > 1 else ((chunk, prepare(chunk)) for chunk in chunks)
    for chunk, prepared in results:
        yield [keys[source] for source in chunk], prepared


def _append(signals: IO[bytes], index: IO[bytes], pieces: Sequence[bytes], rows: Sequence[bytes]) -> None:
    """Append a chunk to the unbuffered files of a store, or nothing if the disk is full, which raises OSError."""
    ends = [file.seek(0, os.SEEK_END) for file in (signals, index)]
    try:
        # Signals reach the file before the rows that refer to them, so an interruption leaves no dangling row.
        for file, contents in ((signals, pieces), (index, rows)):
            for content in contents:
                written = 0
                while written < len(content):  # a write that reaches a limit is partial, and the next one fails
                    written += file.write(memoryview(content)[written:])
    except OSError:
        for file, end in zip((signals, index), ends, strict=True):
            with suppress(OSError):
                file.truncate(end)
        raise
