"""Read mutated headers and signal files of records."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from kdkit import DataError
from kdkit_ecg.doctor.record import examine
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.source import missing_files
from tests.fuzz.meter import Meter, for_inputs, require_enough_memory
from tests.helpers.wfdb_files import write_matrix

STEPS = np.random.default_rng(0).integers(-800, 800, (12, 300))
PREPARATIONS = (
    Preparation(rate=257, band=(0.5, 47.0), resampling="polyphase", scaling="zscore"),
    Preparation(rate=257, band=None, resampling="linear", scaling="raw"),
)
CONTROL = "\x1b]0;title\a\x1b[2J"

# Texts in place of a word of a header: numbers at the edges of types, digits that are not ASCII, and parts of the
# grammar in wrong places.
WORDS = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "2", "12", "1e308", "-1e308", "1e-300", "1e999", "nan", "inf", "99999999999", "50000000", "٣٤",
         "~", "..", "../../etc/passwd", "/dev/zero", "A1", "A1.hea",
         "A1.mat", "S1", "A1/2", "S1/3", "\0", CONTROL, "\u202e", "[red]x[/red]", "<script>", "NU",
         "0/mV", "1e308/mV", "1e-320/uV", "16x50000000", "16:50000000", "16+99999999", "16x3:2+24", "8", "212", "24",
         "310", "311", "508", "516", "524", "61", "80", "160", "32", "7", "360.100003", "5.3971", "6.2001", "#"]
    ),
    # A long word: what is repeated, and how often, so that a failing input is printed in a line.
    st.tuples(st.sampled_from(["9", "1", "0.1", "x", "a/", ".a", " ", "\t1"]), st.sampled_from([400, 5000, 100_000])),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)  # fmt: skip
POSITIONS = st.integers(0, 1 << 16)  # modulo the number of lines, words or bytes
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 11, 12, 13, 23, 24, 100, 149, 151, 299, 301, 600, 7200, 65535, 50_000_000]),
    st.sampled_from([8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524]),  # formats
    st.integers(-(1 << 16), 1 << 16),
    st.integers(0, 10**17),
)  # fmt: skip
EDITS = st.one_of(
    # Half of the edits leave the grammar as it is, so that many headers are read.
    *[st.tuples(st.just("number"), POSITIONS, NUMBERS)] * 5,
    st.tuples(st.just("layout"), POSITIONS, st.sampled_from(["x2", "x3", "x1", ":1", ":299", ":3", "+0", "+25"])),
    st.tuples(st.just("word"), POSITIONS, POSITIONS, WORDS),
    st.tuples(st.just("part"), POSITIONS, POSITIONS, WORDS),  # of a word, such as the skew
    st.tuples(st.just("delete"), POSITIONS),
    st.tuples(st.just("repeat"), POSITIONS, st.sampled_from([1, 2, 12, 1000, 20_000])),
    st.tuples(st.just("insert"), POSITIONS, st.lists(WORDS, max_size=9)),
)
BYTE_EDITS = st.tuples(POSITIONS, st.binary(max_size=4))
LINES, BYTES = 100_000, 2 << 20  # of a header at most: the fuzzer needs memory too
BASES = ("matrix", "no gain", "short lines", "eight leads", "segments", "other gains", "frames", "8 bits")


def header_text(base: str) -> str:
    """Return the valid header that is mutated."""
    lines = [f"A1.mat 16+24 1000/mV 16 0 {lead[0]} 0 0 {name}" for lead, name in zip(STEPS, LEADS, strict=True)]
    text = "\n".join(["A1 12 500 300", *lines, "#Age: 50", "#Sex: Male", "#Dx: 426783006,164889003", ""])
    if base == "no gain":
        return text.replace("1000/mV", "0").replace("500 300", "500")
    if base == "short lines":
        return re.sub(r" 16 0 -?[0-9]+ 0 0 ", " ", text).replace("#Age: 50", "#Age : 50 years")
    if base == "eight leads":
        return text.replace("A1 12", "A1 8").replace("\n".join(lines[2:6]) + "\n", "")
    if base == "frames":
        return text.replace("16+24", "16x2+24").replace("500 300", "250 150")
    if base == "8 bits":
        return text.replace("16+24", "80").replace("500 300", "500")
    if base == "other gains":
        return "A1/3 12 500 800\nS1 300\n~ 200\nS2 300\n#Age: 50\n#Dx: 426783006\n"
    if base == "segments":
        return "A1/3 12 500 800\nS1 300\n~ 200\nS1 300\n#Age: 50\n#Dx: 426783006\n"
    return text


def real_records() -> dict[str, tuple[str, bytes]]:
    """Return header and signal of the smallest record in each folder that KDKIT_SHARED has, named A1."""
    shared = os.environ.get("KDKIT_SHARED")
    headers = Path(shared, "ecg").rglob("*.hea") if shared else ()
    records = {}
    for folder in sorted({path.parent for path in headers}):
        signals = [path for path in folder.glob("*.mat") if path.with_suffix(".hea").is_file()]
        if signals:
            path = min(signals, key=lambda path: (path.stat().st_size, path.name))
            text = path.with_suffix(".hea").read_text(encoding="latin-1")
            records[path.stem] = (text.replace(path.stem, "A1"), path.read_bytes())
    return records


def mutate(text: str, edits: list[tuple]) -> str:
    """Return a header with these edits of its lines and words."""
    lines = text.split("\n")
    for kind, position, *rest in edits:
        row = position % len(lines)
        if kind == "number":  # replaces one of all numbers
            text = "\n".join(lines)
            numbers = list(re.finditer("[0-9]+", text[:100_000]))
            number = numbers[position % len(numbers)] if numbers else None
            if number:
                lines = f"{text[: number.start()]}{rest[0]}{text[number.end() :]}".split("\n")
        elif kind == "layout":  # adds samples per frame, a skew or an offset to the format of one line, or of all
            rows = [row] if position % 2 else range(len(lines))
            for row in rows:
                lines[row] = re.sub(r"^(\S+ [0-9]+)", rf"\g<1>{rest[0]}", lines[row])
        elif kind == "delete":
            lines[row : row + 1] = [""]
        elif kind == "repeat":
            lines[row : row + 1] = [lines[row]] * rest[0]
        elif kind == "insert":
            lines.insert(row, " ".join(map(spelled, rest[0])))
        else:
            words = lines[row].split(" ")
            column = rest[0] % len(words)
            half = len(words[column]) // 2 if kind == "part" else 0
            words[column] = words[column][:half] + spelled(rest[1])
            lines[row] = " ".join(words)
        lines = limited(lines)
    return "\n".join(lines)


def limited(lines: list[str]) -> list[str]:
    """Return the first lines, as many as the fuzzer itself has memory for."""
    size, kept = 0, []
    for line in lines[:LINES]:
        size += len(line) + 1
        if size > BYTES:
            break
        kept.append(line)
    return kept or [""]


def spelled(word: str | tuple[str, int]) -> str:
    """Return a word of `WORDS`."""
    return word if isinstance(word, str) else word[0] * word[1]


def check_record(folder: Path) -> str:
    """Read a record in every way, and return the outcome. Raises anything but a DataError of the readers."""
    path = folder / "A1.hea"
    try:
        header, error = read_header(path), None
    except DataError as caught:
        header, error = None, caught
    assert error is None or (str(path) in str(error) and len(str(error)) < 5000)
    report = examine(folder, path)
    assert report.findings or header is not None
    if header is None:
        return "no header"
    try:
        header.read()
    except DataError as caught:
        error = caught
    require_enough_memory(error)
    assert error is None or str(path) in str(error)
    outcome = "no signal" if error else "read"
    if missing_files(header):  # such a record is excluded before it is prepared
        return outcome
    for preparation in PREPARATIONS:
        prepared, expected = preparation.prepare(header), preparation.expected_samples(header)
        assert not prepared.transient, prepared
        assert prepared.signal is None or prepared.signal.shape[1] <= expected
    return outcome


def fuzz(folder: Path, meter: Meter, inputs: int, first_seed: int = 0) -> None:
    """Read this many mutated records, written into a folder."""
    write_matrix(folder, "S1", STEPS)
    write_matrix(folder, "S2", STEPS[::-1], gain="2.5(3)/uV")
    signal_file = write_matrix(folder, "A1", STEPS).with_suffix(".mat").read_bytes()
    bases = {base: (header_text(base), signal_file) for base in BASES} | real_records()
    strategies = {
        "base": st.sampled_from([*bases]),
        "edits": st.lists(EDITS, max_size=3),
        "header_bytes": st.one_of(st.just([]), st.lists(BYTE_EDITS, max_size=1)),
        "signal_bytes": st.lists(BYTE_EDITS, max_size=2),
        "size": st.sampled_from([None] * 4 + [0, 23, 24, 25, 1000]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of numpy would be printed for each record
        warnings.filterwarnings("ignore", category=DeprecationWarning)

        @for_inputs(meter, inputs, first_seed, **strategies)
        def check(base, edits, header_bytes, signal_bytes, size):
            header, samples = bases[base]
            text = mutate(header, edits).encode("utf-8", errors="surrogateescape")
            (folder / "A1.hea").write_bytes(overwrite(text, header_bytes))
            (folder / "A1.mat").write_bytes(overwrite(samples, signal_bytes)[:size])
            meter.read(lambda: check_record(folder))


def overwrite(raw: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """Return the bytes with some of them replaced."""
    for position, replacement in edits:
        start = position % (len(raw) + 1)
        raw = raw[:start] + replacement + raw[start + len(replacement) :]
    return raw
