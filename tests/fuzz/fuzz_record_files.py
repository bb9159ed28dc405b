"""Read mutated files of records of every kind but WFDB, and mutated tables of labels."""

import io
import warnings
import zipfile
from functools import partial
from pathlib import Path

import edfio
import h5py
import numpy as np
from hypothesis import strategies as st

from kdkit import DataError
from kdkit_ecg import ArrayFormat
from kdkit_ecg.datasets.label_table import read_label_table
from kdkit_ecg.records.open_file import open_file
from kdkit_ecg.records.preparation import Preparation
from tests.fuzz.meter import Meter, for_inputs, require_enough_memory
from tests.helpers.hospital_files import aecg_xml, dicom_group, muse_xml, write_dicom

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
SIGNAL = np.random.default_rng(0).normal(0, 0.3, (8, 200)).round(3)
ARRAYS = ArrayFormat(rate=400, unit="mV", leads=EIGHT, padded=True)
PREPARATION = Preparation(rate=257, band=(0.5, 47.0), resampling="polyphase", scaling="zscore", leads=EIGHT)
TABLE, MEMBER = "labels.csv", "member.npz"

# Texts in place of some bytes: numbers at the edges of types, delimiters, types of numpy, and the kinds of EDF.
WORDS = st.sampled_from(
    [b"0", b"-1", b"99999999", b"1e308", b"nan", b"inf", b"\0", b"\xff\xfe", b";", b",", b"\t", b"'", b'"', b"\n",
     b"\r", b"(", b")", b"[red]", b"\x1b[2J", b"1" * 5000, b"|O", b"<U9", b"<f2", b"        ", b"EDF+C", b"EDF+D",
     b"mmHg    ", b"<", b"</", b"&a;", b"<!ENTITY a 'b'>", b"DERIVED ", b"MB"]
)  # fmt: skip
# Mostly in the first bytes, where formats describe themselves.
POSITIONS = st.one_of(st.integers(0, 255), st.integers(0, 4000), st.integers(0, 1 << 16))
EDITS = st.one_of(
    st.tuples(st.just("replace"), POSITIONS, st.one_of(WORDS, st.binary(min_size=1, max_size=4))),
    st.tuples(st.just("insert"), POSITIONS, st.one_of(WORDS, st.binary(max_size=4))),
    st.tuples(st.just("delete"), POSITIONS, st.sampled_from([b"1", b"12345678", b"1" * 100])),
    st.tuples(st.just("cut"), POSITIONS, st.just(b"")),
)


def valid_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a valid file of each kind, by its name."""
    np.save(folder / "one.npy", SIGNAL.T)
    np.save(folder / "many.npy", np.stack([SIGNAL.T] * 3))
    np.savez(folder / "stored.npz", first=SIGNAL.T, second=SIGNAL, label=np.arange(3))
    np.savez_compressed(folder / "packed.npz", first=SIGNAL.T, second=SIGNAL.T.astype(np.float32))
    np.savez(folder / MEMBER, first=SIGNAL.T)
    np.savetxt(folder / "one.csv", SIGNAL.T, fmt="%.4g", delimiter=",", header=",".join(EIGHT), comments="")
    options = {"physical_dimension": "mV", "physical_range": (-5, 5)}
    signals = [
        edfio.EdfSignal(lead, 400, label=f"ECG {name}", **options) for name, lead in zip(EIGHT, SIGNAL, strict=True)
    ]
    edfio.Edf(signals, data_record_duration=0.5).write(folder / "one.edf")
    steps = (SIGNAL * 1000).astype(np.int16)
    write_dicom(folder / "one.dcm", [dicom_group(steps, EIGHT, 400)], PatientAge="071Y")
    (folder / "muse.xml").write_text(muse_xml(steps, EIGHT, 400), encoding="latin-1")
    (folder / "aecg.xml").write_text(aecg_xml(steps, EIGHT, 400))
    with h5py.File(folder / "many.hdf5", "w") as file:
        file.create_dataset("tracings", data=np.stack([SIGNAL.T] * 3), compression="gzip", chunks=(1, 200, 8))
        file["exam_id"] = [1, 2, 3]
    rows = [f"a{number},AF;b,p{number},50,F,1,0" for number in range(6)]
    (folder / TABLE).write_text("\n".join(["record,label,patient,age,sex,x,y", *rows, ""]))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def mutate_file(name: str, raw: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """Return a file with these edits of its bytes, or of an archive within edits of an array in it.

    The checksum of such an array is right, so that its bytes reach numpy.
    """
    if name != MEMBER:
        return mutate(raw, edits)
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, mutate(old.read(member), edits) if member == "first.npy" else old.read(member))
    return content.getvalue()


def mutate(raw: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """Return a file with these edits of its bytes."""
    for kind, position, word in edits:
        start = position % (len(raw) + 1)
        if kind == "cut":
            raw = raw[:start]
        else:
            replaced = len(word) if kind in ("replace", "delete") else 0
            raw = raw[:start] + (b"" if kind == "delete" else word) + raw[start + replaced :]
    return raw


def check_file(path: Path) -> str:
    """Read all records of a file, and return the outcome. Raises anything but a DataError that names the file."""
    try:
        sources = open_file(path, ARRAYS)
    except DataError as error:
        require_named(error, path)
        return "refused"
    outcome = "no record"
    for source in sources:
        prepared, expected = PREPARATION.prepare(source), PREPARATION.expected_samples(source)
        assert prepared.signal is None or prepared.signal.shape == (8, min(prepared.signal.shape[1], expected))
        outcome = "no signal" if prepared.fault else "read"
        try:
            source.read()
        except DataError as error:
            require_named(error, path)
    return outcome


def require_named(error: DataError, path: Path) -> None:
    """Raise an error that needed too much memory, or does not name the file."""
    require_enough_memory(error)
    assert str(path) in str(error)


def fuzz(folder: Path, meter: Meter, inputs: int, first_seed: int = 0) -> None:
    """Read this many mutated files, written into a folder."""
    files = valid_files(folder)
    strategies = {"name": st.sampled_from([*files]), "edits": st.lists(EDITS, min_size=1, max_size=3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be printed for each record
        warnings.filterwarnings("ignore", category=DeprecationWarning)

        @for_inputs(meter, inputs, first_seed, **strategies)
        def check(name, edits):
            path = folder / name
            path.write_bytes(mutate_file(name, files[name], edits))
            read = partial(read_label_table, path, {}, ()) if name == TABLE else partial(check_file, path)
            meter.read(read)
