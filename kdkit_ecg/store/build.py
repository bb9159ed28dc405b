"""Prepare the records that a store lacks, in several processes, and append them to its files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdkit.utils.console import make_console
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.preparation import Preparation, PreparedSignal
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, Rows, make_row
from kdkit_ecg.utils.processes import run_in_processes, usable_cores

CHUNK = 4  # records that a process receives at a time; this many per process are lost if it is killed
RECORDS_PER_PROCESS = 64  # that justify starting a process, whose imports take about two seconds
ALIGNMENT = 64  # bytes: the offset of each signal is a multiple, which is a cache line


def append_records(
    folder: Path,
    missing: Mapping[bytes, Header],
    preparation: Preparation,
    processes: int | None,
    key_of: Callable[[Header], bytes],
) -> Rows:
    """Prepare these records and append them to a store, with a progress bar on a terminal. The store must be locked.

    missing: key -> header. Returns the rows of records that were not stored: their fault is transient, or their files
    changed during the preparation, so that their key is different now.
    """
    if not missing:
        return np.zeros(0, ROW)
    console = make_console(stderr=True)
    columns = (TextColumn("preparing records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    not_stored = []
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        (folder / SIGNALS).open("ab") as signals,
        (folder / INDEX).open("ab") as index,
    ):
        task = progress.add_task("", total=len(missing))
        for keys, prepared in _prepare_in_chunks(missing, preparation, processes):
            rows = []
            for key, result in zip(keys, prepared, strict=True):
                offset = signals.tell()
                if result.signal is not None:
                    offset += signals.write(bytes(-offset % ALIGNMENT))
                    signals.write(np.ascontiguousarray(result.signal, "<f4").data)
                rows.append(make_row(key, result.content, offset, result.signal, result.fault or ""))
            # Signals reach the file before the rows that refer to them, so an interruption leaves no dangling row.
            signals.flush()
            for key, row, result in zip(keys, rows, prepared, strict=True):
                if result.transient or key_of(missing[key]) != key:
                    not_stored.append(row)
                else:
                    index.write(row)
            index.flush()
            progress.advance(task, len(keys))
    return np.frombuffer(b"".join(not_stored), dtype=ROW)


def _prepare_in_chunks(
    missing: Mapping[bytes, Header], preparation: Preparation, processes: int | None
) -> Iterator[tuple[Sequence[bytes], Sequence[PreparedSignal]]]:
    """Yield the keys and prepared signals of the records, a chunk at a time."""
    headers, keys = list(missing.values()), {header: key for key, header in missing.items()}
    chunks = [headers[start : start + CHUNK] for start in range(0, len(headers), CHUNK)]
    if processes is None:
        processes = min(usable_cores(), max(1, len(missing) // RECORDS_PER_PROCESS))
    jobs = min(processes, len(chunks))
    # A method of Preparation: a worker process then imports its module and not this one.
    prepare = preparation.prepare_all
    results = run_in_processes(prepare, chunks, jobs) if jobs > 1 else ((chunk, prepare(chunk)) for chunk in chunks)
    for chunk, prepared in results:
        yield [keys[header] for header in chunk], prepared
