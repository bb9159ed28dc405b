"""`kdkit ecg doctor` reports every kind of bad and odd record, in folders written here and in real ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdkit_ecg import Challenge2020, Challenge2021
from kdkit_ecg.doctor import survey
from kdkit_ecg.doctor.findings import Reason
from kdkit_ecg.doctor.record import examine
from kdkit_ecg.doctor.signal_sketch import sketch_of
from kdkit_ecg.leads import LEADS
from kdkit_ecg.predict.search import Refusal, find_records
from kdkit_ecg.records.header import read_header
from tests.helpers.command_line import environment
from tests.helpers.hospital_files import aecg_xml, dicom_group, muse_xml, write_dicom
from tests.helpers.wfdb_files import checksum

PERSON = "#Age: 61\n#Sex: Female\n"


def wave(seed=0, time=1000):
    """Return (12, time) integers that rise and fall smoothly like a signal in uV."""
    generator = np.random.default_rng(seed)
    rough = generator.normal(0, 1, (12, time + 20)).cumsum(axis=1)
    rough = rough[:, 20:] - rough[:, :-20]  # without slow drift
    return (rough * 1000 / np.ptp(rough, axis=1, keepdims=True)).round().astype(np.int64)


def write(
    folder,
    name="R1",
    samples=None,
    *,
    gain="1000/mV",
    codes="426783006",
    person=PERSON,
    leads=LEADS,
    rows=None,
    checks=None,
):
    """Write a record in the format of the Challenge: a header, and a matrix after 24 bytes.

    checks: lead -> a checksum, instead of the right one.
    """
    samples = wave() if samples is None else samples
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name}.mat 16+24 {gain} 16 0 {lead[0]} {(checks or {}).get(title, checksum(lead))} 0 {title}"
        for lead, title in zip(samples, leads, strict=True)
    ]
    header = "\n".join([f"{name} {len(leads)} 500 {samples.shape[1]}", *lines, f"{person}#Dx: {codes}\n"])
    (folder / f"{name}.hea").write_text(header)
    matrix = np.array([10, len(rows or leads), samples.shape[1], 0, 4], "<i4").tobytes() + b"val\0"
    (folder / f"{name}.mat").write_bytes(matrix + samples.T.astype("<i2").tobytes())
    return folder / f"{name}.hea"


def edit(old, new):
    """Return a function that replaces a text in a header."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def with_samples(change, **options):
    """Return a function that writes a record whose samples are changed first."""

    def create(folder):
        samples = wave()
        change(samples)
        write(folder, samples=samples, **options)

    return create


def with_files(change, **options):
    """Return a function that writes a record and then changes its files."""
    return lambda folder: change(write(folder, **options))


def fill(index, value):
    def change(samples):
        samples[index] = value

    return change


def resize(by):
    """Return a function that changes the size of the signal file by this number of bytes."""

    def change(path):
        body = path.with_suffix(".mat").read_bytes()
        path.with_suffix(".mat").write_bytes(body[:by] if by < 0 else body + bytes(by))

    return change


def page():
    """Return bytes that are no signal, after the header of a matrix of the right size."""
    matrix = np.array([10, 12, 1000, 0, 4], "<i4").tobytes() + b"val\0"
    return matrix + (b"<p>Not found</p>" * 1500)[:24000]


CASES = {
    "a rate below the band": (with_files(edit("12 500 1000", "12 90 1000")), {Reason.RATE: "90 Hz"}),
    "a header without leads": (
        with_files(edit("12 500", "13 500")),
        {Reason.HEADER: "a line for each of the 13 leads"},
    ),
    "a header that is binary": (with_files(lambda path: path.write_bytes(b"\0\1\2")), {Reason.HEADER: "binary"}),
    "units of something else": (with_files(edit("/mV", "/mmHg")), {Reason.HEADER: "not a supported unit"}),
    "a gain of 0": (with_files(edit("1000/mV", "0/mV")), {Reason.HEADER: "a gain of 0"}),
    "no signal": (with_files(lambda path: path.with_suffix(".mat").unlink()), {Reason.NO_SIGNAL: "R1.mat"}),
    "no header": (with_files(lambda path: path.unlink()), {Reason.NO_HEADER: "R1.mat"}),
    "eleven leads": (
        lambda folder: write(folder, samples=wave()[:11], leads=LEADS[:11]),
        {Reason.LEADS: "without V6"},
    ),
    "leads of the limbs only": (
        lambda folder: write(folder, samples=wave()[:6], leads=LEADS[:6]),
        {Reason.LEADS: "without V1, V2, V3, V4, V5, V6"},
    ),
    "a lead with an unknown name": (
        lambda folder: write(folder, leads=(*LEADS[:11], "MLII")),
        {Reason.LEADS: "without V6; unknown: MLII"},
    ),
    "eight leads": (
        lambda folder: write(folder, samples=wave()[[0, 1, *range(6, 12)]], leads=(*LEADS[:2], *LEADS[6:])),
        {Reason.DERIVED: "III, aVR, aVL, aVF"},
    ),
    "a blood pressure": (
        lambda folder: edit("1000/mV 16 0 5 5 0 ART", "1/mmHg 16 0 5 5 0 ART")(
            write(folder, samples=np.vstack([wave(), np.full(1000, 5)]), leads=(*LEADS, "ART"), checks={"ART": 5})
        ),
        {Reason.CHANNELS: "1 of 13"},
    ),
    "no gain": (lambda folder: write(folder, gain="0", samples=wave() // 5), {Reason.NO_GAIN: "I, II, III"}),
    "no number of samples": (with_files(edit(" 500 1000", " 500")), {Reason.NO_LENGTH: "1,000"}),
    "a signal file without its suffix": (with_files(edit("R1.mat 16", "R1 16")), {Reason.FILE_NAME: "R1"}),
    "normalised units": (with_files(edit("/mV", "/NU")), {Reason.UNITS: ""}),
    "eight leads in normalised units": (
        lambda folder: write(folder, samples=wave()[1:9], leads=(LEADS[0], *LEADS[5:]), gain="1/NU"),
        {Reason.LEADS: "without II, III, aVR, aVL", Reason.UNITS: ""},
    ),
    "no diagnosis": (lambda folder: write(folder, codes=""), {Reason.CODES: "no code at all"}),
    "a diagnosis that is not scored": (lambda folder: write(folder, codes="164884008"), {Reason.CODES: "164884008"}),
    "abbreviations": (
        lambda folder: write(folder, codes="RBBB"),
        {Reason.NO_CODE: "RBBB", Reason.CODES: "no code at all"},
    ),
    "a code with a wrong digit": (lambda folder: write(folder, codes="426783006,426783007"), {Reason.NO_CODE: "007"}),
    "a code twice": (lambda folder: write(folder, codes="426783006,426783006"), {Reason.REPEATED: "426783006"}),
    "a file that was cut": (with_files(resize(-100)), {Reason.SHAPE: "R1.mat has 995 samples per lead, not 1000"}),
    "an empty file": (with_files(resize(-24024)), {Reason.SHAPE: "R1.mat holds 0 leads"}),
    "a matrix of six leads": (
        lambda folder: write(folder, rows=LEADS[:6]),
        {Reason.SHAPE: "6 leads of 1000 samples, not 12 of 1000"},
    ),
    "a file that is longer": (with_files(resize(240)), {Reason.LONGER: "1010 per lead, not 1000"}),
    "a format that nobody writes": (with_files(edit("16+24", "17+24")), {Reason.SIGNAL: ""}),
    "a wrong checksum": (
        with_files(lambda path: path.write_text(path.read_text().replace(" 0 aVR", "1 0 aVR"))),
        {Reason.CHECKSUM: "aVR"},
    ),
    "a web page in place of the signal": (
        with_files(lambda path: path.with_suffix(".mat").write_bytes(page())),
        {Reason.CHECKSUM: "I, II, III"},
    ),
    "samples marked invalid": (with_samples(fill((3, slice(5, 9)), -32768)), {Reason.INVALID: "aVR 4"}),
    "a lead marked invalid": (with_samples(fill(3, -32768)), {Reason.INVALID: "aVR 1000", Reason.FLAT: "aVR"}),
    "flat leads": (with_samples(fill((slice(6, 8)), 7)), {Reason.FLAT: "V1, V2"}),
    "nothing but flat leads": (with_samples(fill(slice(None), 7)), {Reason.EMPTY: ""}),
    "a lead at the rail": (with_samples(fill((1, slice(200, 260)), 3000)), {Reason.CLIPPED: "II"}),
    "a lead that touches the rail twice": (
        with_samples(
            lambda samples: (fill((1, slice(200, 212)), -2500)(samples), fill((1, slice(400, 412)), -2500)(samples))
        ),
        {Reason.CLIPPED: "II"},
    ),
    "a gain beyond any converter": (
        lambda folder: write(folder, gain="2000000/mV"),
        {Reason.GAIN: "2e+06", Reason.AMPLITUDE: "0.0005 mV"},
    ),
    "a gain that is too small": (lambda folder: write(folder, gain="25/mV"), {Reason.AMPLITUDE: "40 mV"}),
    "an age of 300": (lambda folder: write(folder, person="#Age: 300\n"), {Reason.AGE: "300"}),
    "an age in words": (lambda folder: write(folder, person="# Age: old\n"), {Reason.AGE: "old"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_problem_is_found_and_no_other(case, tmp_path):
    create, expected = CASES[case]
    create(tmp_path)
    (record,) = examine_all(tmp_path)
    assert {finding.reason for finding in record.findings} == set(expected)
    for finding in record.findings:
        assert expected[finding.reason] in finding.detail


def examine_all(folder, jobs=1):
    return survey(folder, jobs, lambda total: None, lambda: None).records


@pytest.mark.parametrize("age", ["NaN", "", "Unknown", "0", "89.5"])
def test_a_good_record_has_no_finding(age, tmp_path):
    write(tmp_path, person=f"#Age: {age}\n#Sex: M\n", samples=wave(1, 5000))
    (record,) = examine_all(tmp_path)
    assert record.findings == []
    assert (record.samples, record.rate, record.leads) == (5000, 500, LEADS)


def test_one_short_plateau_at_the_highest_value_is_not_clipping(tmp_path):
    samples = wave()
    samples[1, 200:240] = 2500  # 80 ms at 500 Hz
    write(tmp_path, samples=samples)
    (record,) = examine_all(tmp_path)
    assert record.findings == []


def test_a_signal_belongs_to_the_header_that_names_it(tmp_path):
    path = write(tmp_path)
    path.with_suffix(".mat").rename(tmp_path / "other.mat")
    edit("R1.mat", "other.mat")(path)  # the header names a file that does not have its own name
    (record,) = examine_all(tmp_path)
    assert record.findings == []


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32"])
def test_formats_of_wfdb_are_read_with_their_checksums(fmt, tmp_path):
    options = {"units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": [fmt] * 12, "baseline": [0] * 12}
    wfdb.wrsamp(
        "R1", fs=500, p_signal=wave().T / 1000, adc_gain=[1000.0] * 12, write_dir=str(tmp_path), **options,
        comments=["Age: 61", "Dx: 426783006"],
    )  # fmt: skip
    (record,) = examine_all(tmp_path)
    assert record.findings == []


def test_equal_samples_under_two_names_are_found(tmp_path):
    write(tmp_path / "a", "A0101")
    write(tmp_path / "b", "Q0048", codes="426783006,164889003")
    first, second = examine_all(tmp_path)
    assert first.findings == []
    assert [(finding.reason, finding.detail) for finding in second.findings] == [(Reason.DUPLICATE, "a/A0101")]
    assert second.bad


def test_equal_samples_with_leads_in_another_order_are_found(tmp_path):
    write(tmp_path, "A1")
    write(tmp_path, "A2", wave()[::-1], leads=LEADS[::-1])
    assert [finding.reason for finding in examine_all(tmp_path)[1].findings] == [Reason.DUPLICATE]


@pytest.mark.parametrize(
    ("samples", "gain"),
    [(wave(), "500/mV"), (wave() // 5, "200/mV"), (wave() // 25, "40/mV"), (4 * wave() + 300, "4000/mV")],
    ids=["another gain", "rounded to 5 uV", "rounded to 25 uV", "an offset"],
)
def test_a_duplicate_signal_is_found_whatever_its_gain_offset_and_rounding(samples, gain, tmp_path):
    write(tmp_path, "A1")
    write(tmp_path, "A2", samples, gain=gain)
    first, second = examine_all(tmp_path)
    assert first.findings == []
    assert [(finding.reason, finding.detail) for finding in second.findings] == [(Reason.SCALED_DUPLICATE, "A1")]
    assert not second.bad


def test_a_duplicate_signal_with_invalid_samples_is_found(tmp_path):
    samples = wave()
    samples[:, :50] = -(1 << 15)  # the invalid value of 16 bits
    write(tmp_path, "A1", samples)
    write(tmp_path, "A2", np.where(samples == -(1 << 15), samples, 2 * samples), gain="3000/mV")
    assert Reason.SCALED_DUPLICATE in [finding.reason for finding in examine_all(tmp_path)[1].findings]


def test_flat_leads_have_nothing_to_compare_whatever_their_offset():
    assert sketch_of(np.full((3, 999), 0.1), ("I", "II", "V1")) is None


def test_different_signals_are_not_duplicates(tmp_path):
    for seed in range(40):
        write(tmp_path, f"A{seed}", wave(seed))
    mirrored = wave(0)
    mirrored[5] = -mirrored[5]  # one lead with a correlation of -1 is enough
    write(tmp_path, "B0", mirrored)
    write(tmp_path, "B1", np.roll(wave(1), 10, axis=1))
    assert [record.path for record in examine_all(tmp_path) if record.findings] == []


def test_of_records_with_one_name_the_one_in_its_database_is_good(tmp_path):
    write(tmp_path / "copies", "A1", wave(1))
    write(tmp_path / "training" / "georgia" / "g1", "A1", wave(2))
    assert [record.bad for record in examine_all(tmp_path)] == [False, True]
    (tmp_path / "records.csv").write_text("record,patient,database\nA1,P1,georgia\n")
    copy, original = examine_all(tmp_path)
    assert (original.database, original.findings) == ("training/georgia", [])
    assert [(finding.reason, finding.detail) for finding in copy.findings] == [(Reason.NAME, "training/georgia/g1/A1")]


def test_records_with_one_name_in_two_folders_are_good_if_a_table_has_their_labels(tmp_path):
    for number in range(2):
        write(tmp_path / f"p{number}", "R1", wave(number))
    for own_labels, bad in ((False, 1), (True, 0)):
        assert survey(tmp_path, 1, lambda total: None, lambda: None, own_labels=own_labels).bad == bad


def test_the_segments_of_a_record_are_one_record(tmp_path):
    for name, seed in (("S1", 1), ("S2", 2)):
        write(tmp_path, name, wave(seed))
    (tmp_path / "A1.hea").write_text(f"A1/2 12 500 2000\nS1 1000\nS2 1000\n{PERSON}#Dx: 426783006\n")
    (record,) = examine_all(tmp_path)
    assert (record.path, record.samples, record.findings) == ("A1", 2000, [])
    (tmp_path / "S2.mat").write_bytes(page())
    (record,) = examine_all(tmp_path)
    assert Reason.CHECKSUM in {finding.reason for finding in record.findings}


def test_linked_folders_and_suffixes_in_capitals_are_examined(kdkit_here, tmp_path):
    write(tmp_path / "disk", "A1", wave(1))
    write(tmp_path / "data", "E1", wave(2)).rename(tmp_path / "data" / "E1.HEA")
    (tmp_path / "data" / "E1.mat").rename(tmp_path / "data" / "E1.MAT")
    write(tmp_path / "data", "E2", wave(1)).rename(tmp_path / "data" / "E2.HEA")
    (tmp_path / "data" / "E3.DAT").touch()
    (tmp_path / "data" / "cpsc").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "lost").symlink_to(tmp_path / "gone")
    for name in ("b.npy", "labels.csv"):
        (tmp_path / "data" / name).touch()
    records = examine_all(tmp_path / "data")
    assert [(record.path, [finding.reason for finding in record.findings]) for record in records] == [
        ("E1", []),
        ("E2", [Reason.DUPLICATE]),
        ("E3", [Reason.NO_HEADER]),
        ("cpsc/A1", []),
    ]
    result = kdkit_here("ecg", "doctor", "data", "--jobs", 1, "--json", "survey.json")
    assert "1 of the folders cannot be read: lost\n" in result.out
    assert "1 .npy: not examined, because they do not state their leads and rate\n" in result.out
    assert json.loads((tmp_path / "survey.json").read_text())["not_listed"] == ["lost"]


def test_files_of_hospitals_are_examined_as_wfdb_records_are(tmp_path):
    write(tmp_path, "A1", wave(1))
    write_dicom(tmp_path / "b.dcm", [dicom_group(wave(1), LEADS, 500)])
    write_dicom(tmp_path / "1.2.840", [dicom_group(wave(3)[:2], ("I", "V1"), 500)])  # without a suffix
    flat, clipped = wave(2), wave(4)
    flat[6] = 0
    clipped[1] = clipped[1].clip(-200, 200) * 6
    (tmp_path / "c.xml").write_text(muse_xml(flat, LEADS, 500), "latin-1")
    (tmp_path / "d.xml").write_text(aecg_xml(clipped, LEADS, 500))
    for name in ("A1.xml", "A1.scp", "e.edf", "f.scp"):
        (tmp_path / name).write_bytes(b"damaged")
    result = survey(tmp_path, 1, lambda total: None, lambda: None)
    assert {record.path: [finding.reason for finding in record.findings] for record in result.records} == {
        "1.2.840": [Reason.LEADS],
        "A1": [],  # the other forms of it are not read
        "b": [Reason.DUPLICATE],
        "c": [Reason.FLAT],
        "d": [Reason.CLIPPED],
        "e": [Reason.HEADER],
    }
    dicom, other = (next(record for record in result.records if record.path == name) for name in ("b", "e"))
    assert (dicom.rate, dicom.samples, dicom.leads) == (500, 1000, LEADS)
    assert other.findings[0].detail == "it has 7 bytes; expected a header of at least 256"
    assert result.unread == (tmp_path / "f.scp",)
    refused = [item.reason for item in find_records([tmp_path], None) if isinstance(item, Refusal)]
    assert sum("it is a file of SCP-ECG, which is not read" in reason for reason in refused) == 1


def test_several_processes_have_the_same_findings(tmp_path):
    for seed in range(12):
        write(tmp_path, f"A{seed}", wave(seed % 9))
    single, parallel = examine_all(tmp_path), examine_all(tmp_path, jobs=2)
    assert [(record.path, record.findings) for record in single] == [
        (record.path, record.findings) for record in parallel
    ]
    assert sum(record.bad for record in single) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 700), junk=st.binary(max_size=12), cut=st.integers(0, 24023))
def test_no_damage_makes_the_doctor_fail(offset, junk, cut, tmp_path):
    path = write(tmp_path)
    header = path.read_bytes()
    path.write_bytes(header[:offset] + junk + header[offset + len(junk) :])
    path.with_suffix(".mat").write_bytes(path.with_suffix(".mat").read_bytes()[:cut])
    assert examine(tmp_path, path).findings


def test_a_record_with_numbers_near_the_largest_float_is_bad(tmp_path):
    (tmp_path / "a.xml").write_text(aecg_xml(np.tile([[1.7e308, 1.6e308]], (12, 400)), LEADS, 500))
    (record,) = examine_all(tmp_path)
    assert [finding.reason for finding in record.findings] == [Reason.SIGNAL]
    assert "infinite, or too large for a number" in record.findings[0].detail


def test_a_record_that_is_too_large_for_the_memory_is_bad(tmp_path, monkeypatch):
    def raise_memory_error(*args):
        raise MemoryError("Unable to allocate 2 TiB")

    write(tmp_path)
    monkeypatch.setattr("kdkit_ecg.records.wfdb_record._read_16_bits", raise_memory_error)
    (finding,) = examine(tmp_path, tmp_path / "R1.hea").findings
    assert (finding.reason, finding.detail) == (Reason.SIGNAL, "Unable to allocate 2 TiB")


def test_a_good_folder_exits_with_0_and_lists_databases_and_classes(kdkit_here, tmp_path):
    write(tmp_path / "data" / "training" / "georgia" / "g1", "A1", wave(1, 5000), codes="164889003,426783006")
    write(tmp_path / "data" / "training" / "georgia" / "g2", "A2", wave(2, 7500), person="#Age: NaN\n")
    result = kdkit_here("ecg", "doctor", "data", "--jobs", 1)
    assert result.code == 0, result
    row = next(line for line in result.out.splitlines() if "training/georgia" in line and "12" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "training/georgia", "2", "0", "0", "0.0", "500", "10 to 15 (12.5)", "12", "1", "1",
    ]  # fmt: skip
    rows = [line.split() for line in result.out.splitlines()]
    assert ["│", "NSR", "│", "2", "│", "training/georgia", "2", "│"] in rows
    assert ["│", "AF", "│", "1", "│", "training/georgia", "1", "│"] in rows
    assert result.out.endswith("2 records: 0 bad, 0 odd\n")


def test_many_folders_such_as_one_for_each_patient_are_counted_in_those_above(kdkit_here, tmp_path):
    for number in range(42):
        folder = tmp_path / "data" / ("ward" if number else "clinic/2024")
        write(folder / f"P{number}", f"A{number}", wave(number))
    result = kdkit_here("ecg", "doctor", "data", "--jobs", 1)
    rows = [line.split("│")[1:3] for line in result.out.splitlines() if "..." in line]
    assert [[cell.strip() for cell in row] for row in rows] == [["clinic/...", "1"], ["ward/...", "41"]]


def test_a_bad_record_exits_with_1_and_is_named_with_its_reason(kdkit_here, tmp_path):
    for number in range(5):
        write(tmp_path / "data", f"A{number}", wave(number), codes="")
    (tmp_path / "data" / "A9.mat.part").touch()
    result = kdkit_here("ecg", "doctor", "data", "--jobs", 1, "--json", "survey.json")
    assert result.code == 1
    assert "5 no code that 2020 or 2021 scores: A0 (no code at all), A1 (no code at all), A2 (no code" in result.out
    assert "1 unfinished .part file" in result.out
    assert "A4" not in result.out
    assert "    A4 (no code at all)\n" in kdkit_here("ecg", "doctor", "data", "--jobs", 1, "--all").out
    report = json.loads((tmp_path / "survey.json").read_text())
    assert [record["record"] for record in report["records"] if record["bad"]] == [f"A{number}" for number in range(5)]
    assert report["databases"]["."]["bad"] == 5
    assert report["records"][0]["findings"][0]["reason"] == Reason.CODES


def test_the_doctor_does_not_import_torch(tmp_path):
    write(tmp_path)
    code = "import sys, kdkit.cli.main; kdkit.cli.main.call(['ecg', 'doctor', '.']); print('torch' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-2:] == ["1 records: 0 bad, 0 odd", "False"], process


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the processes of the command are found in /proc")
def test_ctrl_c_ends_all_processes_without_a_traceback(tmp_path):
    for seed in range(400):
        write(tmp_path / "data", f"A{seed}", wave(seed))
    command = [sys.executable, "-m", "kdkit", "ecg", "doctor", "data", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:  # the workers, which take most of the time
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert err.strip() == "stopped"


def test_a_folder_that_is_empty_or_missing_exits_with_2(kdkit_here, tmp_path):
    (tmp_path / "empty").mkdir()
    result = kdkit_here("ecg", "doctor", "empty")
    assert (result.code, "no WFDB, DICOM, XML or EDF file in empty" in result.err) == (2, True)
    for name in ("a.npy", "b.scp", "c.SCP"):
        (tmp_path / "empty" / name).touch()
    assert "its subfolders (but 2 .scp, 1 .npy)" in kdkit_here("ecg", "doctor", "empty").err
    assert kdkit_here("ecg", "doctor", "missing").code == 2


def test_problems_of_real_records_are_found(shared, kdkit_here, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shared / "ecg" / "header_variants", data / "header_variants")
    picked = {"cpsc_2018": "A01*", "cpsc_2018_extra": "Q0*", "ningbo": "JS4554*", "georgia": "E0000*"}
    for folder, pattern in picked.items():
        (data / folder).mkdir()
        for path in (shared / "ecg" / folder).glob(pattern):
            shutil.copy(path, data / folder)
    result = kdkit_here("ecg", "doctor", "data", "--all", "--jobs", 1)
    assert result.code == 1, result
    for line in (
        "cpsc_2018_extra/Q0048 (cpsc_2018/A0101)",
        "ningbo/JS45542 (V1, V2, V3, V4, V5, V6)",
        "header_variants/incart_257hz_headers_only_no_signal/I0016 (I0016.mat)",
        "header_variants/cpsc2018_original_struct_mat/A1980 (A1980.mat)",
        "header_variants/reduced_leads/two/E07502 (without V1, V2",
        "header_variants/2020-02_first_release_abbrev_dx/A0001 (RBBB)",
        "header_variants/2020-05_gain_4880_200_2000000_blank_dx/S0001 (2e+06 steps per mV)",
        "header_variants/2020-05_gain_4880_200_2000000_blank_dx/E00001 (georgia/E00001)",
    ):
        assert f"    {line}" in result.out
    assert "the signal of another record except for gain, offset or rounding" in result.out


@pytest.mark.slow
def test_the_good_records_are_those_that_the_loaders_use(shared):
    folder = Path(shared) / "ecg"
    records = examine_all(folder, jobs=2)
    good = sum(not record.bad for record in records)
    for challenge in (Challenge2020, Challenge2021):
        assert challenge(folder).summary.startswith(f"{good} of ")
    reasons_of = {record.path: {finding.reason for finding in record.findings} for record in records}
    assert reasons_of["cpsc_2018_extra/Q0048"] == {Reason.DUPLICATE}
    assert {path for path, reasons in reasons_of.items() if Reason.FLAT in reasons} == {
        f"ningbo/{name}" for name in ("JS20004", "JS45542", "JS45544", "JS45551")
    }


@pytest.mark.parametrize("storage", ["16", "24", "32"])
def test_a_gain_that_wfdb_chose_is_no_finding(storage, tmp_path):
    # (time, leads) in mV, of which wfdb spreads each lead over all steps of the format
    signal = wave(1, 5000).T / 2000
    wfdb.wrsamp(
        *("R1", 500, ["mV"] * 12, list(LEADS)),
        p_signal=signal,
        fmt=[storage] * 12,
        comments=["Age: 50", "Sex: Female", "Dx: 426783006"],
        write_dir=str(tmp_path),
    )
    (record,) = examine_all(tmp_path)
    assert max(read_header(tmp_path / "R1.hea").gains) > 50_000
    assert record.findings == []


def test_a_record_is_bad_if_the_leads_that_it_needs_are_flat(tmp_path):
    samples = wave()
    samples[1:7] = 7
    write(tmp_path, samples=samples)
    for leads, reason in (((LEADS[1], LEADS[6]), Reason.EMPTY), (LEADS[:2], Reason.FLAT)):
        (finding,) = examine(tmp_path, tmp_path / "R1.hea", leads=leads).findings
        assert finding.reason is reason


def test_records_with_own_leads_and_labels_are_judged_by_these(kdkit_here, tmp_path):
    for number in range(3):
        write(tmp_path / "data", f"E{number}", wave(number)[:3], leads=("I", "III", "V1"), codes="")
    result = kdkit_here("ecg", "doctor", "data", "--leads", "v1, Lead II", "--own-labels", "--all", "--jobs", 1)
    assert result.code == 0, result
    assert "3 leads computed from two other limb leads:\n    E0 (II)\n" in result.out
    assert "3 records: 0 bad, 3 odd" in result.out
    assert "Classes of" not in result.out  # which have other names here
    assert kdkit_here("ecg", "doctor", "data", "--leads", "V1", "--jobs", 1).code == 1  # without a code
    assert kdkit_here("ecg", "doctor", "data", "--own-labels", "--jobs", 1).code == 1  # without V2 to V6
