"""Write the tables of docs/scaling.md from named constants: `python tools/scaling.py`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MARK = "<!-- The rest of this page is written by `python tools/scaling.py`, from its constants. -->"

# The data. Sources are in the page.
SETS = {"Challenge 2021": 88_253, "800,000 records": 800_000}
LEADS, SECONDS, RAW_RATE, RATE, WINDOW, CLASSES = 12, 10, 500, 257, 4096, 26
TRAINING, VALIDATION = 3 / 5, 1 / 5  # of the records: three folds of five, and one

# The protocol of LRH-Net, with ten windows of a record as draws.
BATCH, EPOCHS, DRAWS = 64, 90, 10
POOLED, FEATURE_MAP = 512, 512 * (WINDOW // 32)  # numbers in a teacher's pooled vector, and in its last feature map

# Measured on 2 cores of an AMD EPYC at 2.4 GHz, torch 2.14.1, float32, batches of 64 x 12 x 4096: seconds. The
# preparation on one core of an Intel Xeon: the CPU time of `kdkit ecg prepare` for 561 records less that for 49.
STUDENT_STEP, TEACHER_FORWARD, PREPARATION = 0.54, 1.34, 0.005
MEASURED_CORES = 2
# Extrapolated: a training step is a forward and a backward of twice its operations.
STEP_FORWARDS = 3
TEACHER_STEP, STUDENT_FORWARD = STEP_FORWARDS * TEACHER_FORWARD, STUDENT_STEP / STEP_FORWARDS

# Multiply-adds of a forward pass of one sample of 4096, and the peak of an A10G, operations per second.
TEACHER_MACS, STUDENT_MACS, GPU_PEAK = 1.6e9, 0.10e9, 31.2e12
GPU_SHARES = {"teacher": (0.05, 0.30), "student": (0.02, 0.15)}  # of the peak, assumed: worst, best

# The grid of the tables: networks per fold and seed, and the number of folds and seeds.
TEACHERS, STUDENTS, RUNS = 5, 22, 15
MACHINES, MACHINE_CORES = 10, 8


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per batch: a teacher's forward pass and training step, and a student's."""

    teacher_forward: float
    teacher_step: float
    student_forward: float
    student_step: float


CPU = Speed(TEACHER_FORWARD, TEACHER_STEP, STUDENT_FORWARD, STUDENT_STEP)
# Captured steps on one NVIDIA H100, torch 2.11, float32, the same batches; the student's forward is a third of a step.
H100 = Speed(teacher_forward=0.0022, teacher_step=0.0086, student_forward=0.0014, student_step=0.0043)


def gpu(case: int) -> Speed:
    """Return the speed of an A10G in the worst case (0) or the best (1), computed from operations alone."""
    teacher, student = (
        2 * macs * BATCH / (GPU_PEAK * GPU_SHARES[role][case])  # a multiply-add is two operations
        for role, macs in (("teacher", TEACHER_MACS), ("student", STUDENT_MACS))
    )
    return Speed(teacher, STEP_FORWARDS * teacher, student, STEP_FORWARDS * student)


def steps(records: int) -> int:
    """Return the number of updates in an epoch."""
    return math.ceil(records * TRAINING / BATCH)


def training(records: int, step: float, forward: float) -> float:
    """Return the hours of a network's training: its steps, and a forward pass of the validation split in each epoch."""
    return EPOCHS * (steps(records) * step + math.ceil(records * VALIDATION / BATCH) * forward) / 3600


def teaching(records: int, speed: Speed, *, cached: bool) -> float:
    """Return the hours of one teacher's outputs: at every step, or, if cached, once for each draw of a sample."""
    return (DRAWS if cached else EPOCHS) * steps(records) * speed.teacher_forward / 3600


def smlkd(records: int, speed: Speed, *, cached: bool) -> float:
    """Return the hours of S-MLKD: a teacher, an assistant that learns from it, a student that learns from both."""
    # The student reuses the teacher outputs that were cached for the assistant.
    outputs = (2 if cached else 3) * teaching(records, speed, cached=cached)
    teachers = 2 * training(records, speed.teacher_step, speed.teacher_forward)
    return teachers + training(records, speed.student_step, speed.student_forward) + outputs


def chain(records: int, speed: Speed) -> float:
    """Return the hours that no number of machines reduces: the stages of S-MLKD, which wait for each other."""
    return smlkd(records, speed, cached=True)


def grid(records: int, speed: Speed) -> float:
    """Return the hours of all trials, one after another, with each teacher's outputs cached once."""
    teachers = TEACHERS * (
        training(records, speed.teacher_step, speed.teacher_forward) + teaching(records, speed, cached=True)
    )
    return RUNS * (teachers + STUDENTS * training(records, speed.student_step, speed.student_forward))


def on_machines(records: int, machines: int) -> float:
    """Return the hours of the grid on several machines, with two threads per trial: the divided work, or the chain."""
    return max(chain(records, CPU), grid(records, CPU) / (machines * MACHINE_CORES // MEASURED_CORES))


def preparation(records: int, processes: int) -> float:
    """Return the hours to read, filter and resample every record."""
    return records * PREPARATION / processes / 3600


def sizes() -> list[tuple[str, list[float]]]:
    """Return the name and the bytes of everything that is stored, for each set."""
    per_record = {
        f"raw: {LEADS} leads, {SECONDS} s, {RAW_RATE} Hz, int16": LEADS * SECONDS * RAW_RATE * 2,
        f"prepared at {RATE} Hz at full length, float32": LEADS * SECONDS * RATE * 4,
        f"prepared as windows of {WINDOW}, float32": LEADS * WINDOW * 4,
        f"prepared as windows of {WINDOW}, float16": LEADS * WINDOW * 2,
    }
    outputs = {
        "outputs of one teacher, one draw: logits, float32": CLASSES * 4,
        f"the same for {DRAWS} draws": DRAWS * CLASSES * 4,
        f"with its pooled vector of {POOLED}, {DRAWS} draws, float32": DRAWS * (CLASSES + POOLED) * 4,
        f"with its pooled vector of {POOLED}, {DRAWS} draws, float16": DRAWS * (CLASSES + POOLED) * 2,
        "with the feature map of its last group, one draw, float16": (CLASSES + FEATURE_MAP) * 2,
    }
    # Teachers run on training records only.
    sizes = [(name, [count * records for records in SETS.values()]) for name, count in per_record.items()]
    sizes += [(name, [count * TRAINING * records for records in SETS.values()]) for name, count in outputs.items()]
    return sizes


def with_tables(page: str) -> str:
    """Return the page with new tables. Raises ValueError if its mark is missing."""
    above, mark, _tables = page.partition(MARK)
    if not mark:
        raise ValueError(f"expected the line {MARK!r} before the tables of {PAGE.name}; put it back")
    return f"{above}{MARK}\n" + "\n".join([_bytes(), _hours(), _machines()])


def _bytes() -> str:
    rows = [[what, *map(_size, counts)] for what, counts in sizes()]
    return f"\n## Bytes\n\n{_table(['what', *SETS], rows)}"


def _hours() -> str:
    rows = []
    for processes in (1, 2):
        rows.append([f"preparing, {processes} process{'es' * (processes > 1)}", "measured per record"])
        rows[-1] += [_time(preparation(records, processes)) for records in SETS.values()]
    parts = {
        "the student's training": ("measured per step", lambda n, s: training(n, s.student_step, s.student_forward)),
        "one teacher's training": ("3 forwards a step", lambda n, s: training(n, s.teacher_step, s.teacher_forward)),
        "one teacher run at every step": ("measured per forward", lambda n, s: teaching(n, s, cached=False)),
        f"one teacher run once for {DRAWS} draws": ("the same", lambda n, s: teaching(n, s, cached=True)),
        "all of S-MLKD, teachers run at every step": ("sum", lambda n, s: smlkd(n, s, cached=False)),
        "all of S-MLKD, cached": ("sum", lambda n, s: smlkd(n, s, cached=True)),
    }
    for what, (how, hours) in parts.items():
        rows.append([f"{what}, 2 cores", how, *(_time(hours(records, CPU)) for records in SETS.values())])
    for what, (_how, hours) in parts.items():
        rows.append(
            [f"{what}, one H100", "measured steps", *(_time(hours(records, H100)) for records in SETS.values())]
        )
    for what, (_how, hours) in parts.items():
        times = [f"{_time(hours(records, gpu(1)))} to {_time(hours(records, gpu(0)))}" for records in SETS.values()]
        rows.append([f"{what}, one A10G", "operations alone", *times])
    return f"## Hours\n\n{_table(['what', 'from', *SETS], rows)}"


def _machines() -> str:
    rows = [["the longest chain: S-MLKD", *(_time(chain(records, CPU)) for records in SETS.values())]]
    for count in (1, 2, MACHINES):
        name = f"{count} machine{'s' * (count > 1)} of {MACHINE_CORES} cores"
        rows.append([name, *(_time(on_machines(records, count)) for records in SETS.values())])
    title = f"The grid of the tables: {RUNS} folds and seeds of {TEACHERS + STUDENTS} networks"
    return f"## {title}\n\n{_table(['machines', *SETS], rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _size(count: float) -> str:
    """Return bytes in the largest unit in which they are at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(hours: float) -> str:
    """Return minutes, hours or days, with two or three digits."""
    if hours < 1:
        return f"{60 * hours:.2g} min"
    if hours < 100:
        return f"{hours:.3g} h"
    days = hours / 24
    return f"{days:.3g} days" if days < 100 else f"{days:,.0f} days"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
