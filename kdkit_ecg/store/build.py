"""The pass that prepares records and appends them to a store, in several processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdkit_ecg.records.header import Header
from kdkit_ecg.records.preparation import Preparation, TrialResult
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, Rows, row_of
from kdkit_ecg.utils.processes import in_processes, processors

CHUNK = 4  # records that a process gets at a time, and that are lost where the pass is killed
WORTH = 64  # records for which it is worth to start a process, which takes two seconds or so to import what it needs
ALIGNED = 64  # bytes, of which each record's offset is a multiple


def fill(
    folder: Path,
    missing: Mapping[bytes, Header],
    preparation: Preparation,
    processes: int | None,
    key_of: Callable[[Header], bytes],
) -> Rows:
    """Prepare these records and append them; a bar is shown on a terminal. The store must be locked.

    Signals are written before the rows that tell of them, so that whatever ends the pass, what has a row is whole.
    Returns the rows of records that are not kept: their fault may pass, or their files were changed in between, so
    that their key is another one now.
    """
    if not missing:
        return np.zeros(0, ROW)
    console = Console(stderr=True)
    columns = (TextColumn("preparing records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    passing = []
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        (folder / SIGNALS).open("ab") as signals,
        (folder / INDEX).open("ab") as index,
    ):
        task = progress.add_task("", total=len(missing))
        for keys, outcomes in _prepared(missing, preparation, processes):
            rows = [_append(signals, key, outcome) for key, outcome in zip(keys, outcomes, strict=True)]
            signals.flush()
            for key, row, outcome in zip(keys, rows, outcomes, strict=True):
                if outcome.passing or key_of(missing[key]) != key:
                    passing.append(row)
                else:
                    index.write(row)
            index.flush()
            progress.advance(task, len(keys))
    return np.frombuffer(b"".join(passing), dtype=ROW)


def _append(signals: IO[bytes], key: bytes, outcome: TrialResult) -> bytes:
    offset = signals.tell()
    if outcome.signal is not None:
        offset += signals.write(bytes(-offset % ALIGNED))
        signals.write(np.ascontiguousarray(outcome.signal, "<f4").data)
    return row_of(key, outcome.content, offset, outcome.signal, outcome.fault or "")


def _prepared(
    missing: Mapping[bytes, Header], preparation: Preparation, processes: int | None
) -> Iterator[tuple[Sequence[bytes], Sequence[TrialResult]]]:
    """Yield keys and what came of their records, a few at a time."""
    headers, keys = list(missing.values()), {header: key for key, header in missing.items()}
    chunks = [headers[at : at + CHUNK] for at in range(0, len(headers), CHUNK)]
    jobs = min(processes or min(processors(), max(1, len(missing) // WORTH)), len(chunks))
    work = preparation.prepare_all  # other processes import its file and not this one
    came = in_processes(work, chunks, jobs) if jobs > 1 else ((chunk, work(chunk)) for chunk in chunks)
    for chunk, outcomes in came:
        yield [keys[header] for header in chunk], outcomes
