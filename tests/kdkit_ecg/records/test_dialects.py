"""Headers that other programs write are read with their signals; each form was found in a public bug report."""

import re

import numpy as np
import pytest

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records import wfdb_record
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.wfdb_record import read_steps
from tests.helpers.wfdb_files import checksum, write_matrix

STEPS = np.random.default_rng(0).integers(-800, 800, (12, 600))


def edit(path, old, new, encoding="utf-8"):
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new).encode(encoding))
    return path


def assert_reads(path, steps=STEPS, *, gain=1000, name="A1", rate=500):
    record = read_header(path).read()
    assert (record.name, record.leads, record.rate) == (name, LEADS, rate)
    assert np.allclose(record.signal, steps / gain, atol=1e-6)
    return record


@pytest.mark.parametrize(
    "record_line",
    [
        "A1 12 500 600 2006",
        "A1 12 500 600 2014-05-08 05:05:15",
        "A1 12 500 600 12-May-2020 12:33:59",
        "A1 12 500/1000(5) 600 12:33:59.5 12/05/2020",
        "A1.mat 12 500 600",
        "sub/A1 12 500 600",
        "/data/sub/A1.hea 12 500 600",
        "A1 12 500",
        "A1 12 500 0",
    ],
    ids=[
        "a year",
        "an ISO date",
        "a month in letters",
        "a counter",
        "a suffix",
        "a folder",
        "a path",
        "no length",
        "0",
    ],
)
def test_a_first_line_is_read_with(tmp_path, record_line):
    assert_reads(write_matrix(tmp_path, "A1", STEPS, record_line=record_line))


def test_a_number_after_a_slash_is_part_of_the_path_if_it_is_the_name_of_the_file(tmp_path):
    assert_reads(write_matrix(tmp_path, "101", STEPS, record_line="sub/101 12 500 600"), name="101")


def test_the_length_is_that_of_the_file_if_the_header_has_none(tmp_path):
    path = write_matrix(tmp_path, "A1", STEPS, record_line="A1 12 500")
    path.with_suffix(".mat").write_bytes(path.with_suffix(".mat").read_bytes()[: -24 * 100])
    assert read_header(path).samples == 500
    path.with_suffix(".mat").write_bytes(bytes(30))
    with pytest.raises(DataError, match=r"no number of samples, and A1\.mat has none either"):
        read_header(path)
    path.with_suffix(".mat").unlink()
    with pytest.raises(DataError, match=r"A1\.hea is not a readable header: .*No such file"):
        read_header(path)


def test_a_length_is_needed_if_the_format_has_no_fixed_size(tmp_path):
    path = edit(write_matrix(tmp_path, "A1", STEPS, record_line="A1 12 500"), "16+24", "516+24")
    with pytest.raises(DataError, match="needs the number of samples, as format 516 has no fixed size"):
        read_header(path)


@pytest.mark.parametrize("file", ["A1", "sub/A1.mat", "A1.MAT", "a1.mat"])
def test_the_signal_is_found_if_its_name_lacks_the_suffix_or_has_a_folder_or_another_case(tmp_path, file):
    path = edit(write_matrix(tmp_path, "A1", STEPS), "A1.mat", file)
    assert_reads(path)
    assert read_header(path).files == ("A1.mat",)


def test_without_a_gain_the_default_of_wfdb_is_used_and_marked(tmp_path):
    path = write_matrix(tmp_path, "A1", STEPS, gain="0")
    assert_reads(path, gain=200)
    assert read_header(path).default_gains == LEADS
    assert read_header(write_matrix(tmp_path, "A2", STEPS)).default_gains == ()


@pytest.mark.parametrize(
    ("old", "new", "gain"),
    [
        (r" 1000/mV 16 0 -?\d+ -?\d+ 0 ", " ", 200),
        (r" 16 0 -?\d+ -?\d+ 0 ", " ", 1000),
        (r" 0 -?\d+ -?\d+ 0 ", " Lead ", 1000),
        (r" -?\d+ 0 (?=[IaV])", " ", 1000),
    ],
    ids=["only the name", "gain", "gain and bits", "all but the checksum and the block"],
)
def test_fields_that_wfdb_leaves_out_are_not_needed(tmp_path, old, new, gain):
    path = write_matrix(tmp_path, "A1", STEPS)
    path.write_text(re.sub(old, new, path.read_text()))
    assert_reads(path, gain=gain)
    assert read_header(path).default_gains == (LEADS if gain == 200 else ())


@pytest.mark.parametrize("name", ["loud/mV 16 0 1 1 0 I", "vx", "X", "1000/mV", "1000/furlong II"])
def test_without_these_fields_only_one_of_the_twelve_names_is_taken_for_a_lead(tmp_path, name):
    path = tmp_path / "A1.hea"
    path.write_text(f"A1 1 500 600\nA1.mat 16 {name}\n")
    with pytest.raises(DataError, match=r"got the line|is not a supported unit"):
        read_header(path)


def test_a_number_of_samples_and_a_suffix_that_are_not_in_the_header_are_marked(tmp_path):
    whole = write_matrix(tmp_path, "A1", STEPS)
    assert (read_header(whole).counted, read_header(whole).renamed_files) == (False, ())
    path = edit(write_matrix(tmp_path, "A2", STEPS, record_line="A2 12 500"), "A2.mat", "A2")
    assert (read_header(path).counted, read_header(path).renamed_files) == (True, ("A2",))


def test_a_byte_order_mark_is_not_part_of_the_name(tmp_path):
    assert_reads(edit(write_matrix(tmp_path, "A1", STEPS), "A1 12", "\ufeffA1 12"))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("wait\u2026", "cp1252"), ("page\f", "ascii"), ("tab\v", "ascii"), ("\u2028", "utf-8"), ("\u0085", "latin-1")],
)
def test_only_line_ends_end_a_line(tmp_path, text, encoding):
    path = edit(write_matrix(tmp_path, "A1", STEPS), "#Age: 50", f"#Note: {text} Age\n#Age: 50", encoding)
    assert assert_reads(path).age == 50


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\n\n"])
def test_lines_end_as_on_any_system(tmp_path, line_end):
    path = write_matrix(tmp_path, "A1", STEPS)
    path.write_bytes(path.read_bytes().replace(b"\n", line_end.encode()) + b"\x1a")  # as DOS ends a file
    assert assert_reads(path).sex == "male"


def test_leads_are_known_by_longer_names_and_in_any_case(tmp_path):
    names = ["Lead I", "LEAD II", "lead_III", "AVR", "avl", "Lead aVF", "v1", "MDC_ECG_LEAD_V2", "ECG V3", "V4", "V5"]
    assert_reads(write_matrix(tmp_path, "A1", STEPS, leads=[*names, "LeadV6"]))


@pytest.mark.parametrize(
    ("text", "years"),
    [
        *[("071Y", 71), ("71Y", 71), ("006M", 0.5), ("026W", 0.498), ("000D", 0), ("130Y", None)],
        *[("P71Y", 71), ("71 years", 71), ("71 yrs. old", 71), ("71y", 71), ("6 months", 0.5), ("26 weeks", 0.498)],
    ],
)
@pytest.mark.parametrize("key", ["#Age: ", "#Age : ", "# age:"])
def test_ages_are_read_with_their_unit(tmp_path, text, years, key):
    record = read_header(write_matrix(tmp_path, "A1", STEPS, comments=f"{key}{text}\n#Sex: FEMALE\n")).read()
    assert record.age == (years if years is None else pytest.approx(years, abs=1e-3))
    assert record.sex == "female"


def write_segments(folder, segments="S1 600\n~ 200\nS2 600\n", first_line="A1/3 12 500 1400", **second):
    write_matrix(folder, "S1", STEPS)
    write_matrix(folder, "S2", second.pop("steps", STEPS[::-1]), **second)
    (folder / "A1.hea").write_text(f"{first_line}\n{segments}#Age: 50\n#Sex: Male\n#Dx: 426783006\n")
    return folder / "A1.hea"


def test_segments_are_joined_and_a_gap_is_interpolated(tmp_path):
    path = write_segments(tmp_path)
    gap = np.full((12, 200), -32768)
    assert np.array_equal(read_steps(read_header(path)), np.concatenate([STEPS, gap, STEPS[::-1]], axis=1))
    ramp = np.linspace(STEPS[:, -1], STEPS[::-1][:, 0], 202)[1:-1].T
    assert_reads(path, np.concatenate([STEPS, ramp, STEPS[::-1]], axis=1))
    header = read_header(path)
    assert header.files == ("S1.hea", "S1.mat", "S2.hea", "S2.mat")
    assert (header.samples, header.age, header.codes) == (1400, 50, ("426783006",))


def test_a_gap_is_interpolated_in_a_format_without_an_invalid_value(tmp_path):
    steps = STEPS // 40 + 300  # of format 8, which stores differences of a byte
    for name in ("S1", "S2"):
        np.diff(steps, prepend=steps[:, :1]).T.astype(np.int8).tofile(tmp_path / f"{name}.dat")
        firsts = zip(steps[:, 0], LEADS, strict=True)
        lines = [f"{name}.dat 8 200(280)/mV 12 0 {first} 0 0 {lead}" for first, lead in firsts]
        (tmp_path / f"{name}.hea").write_text("\n".join([f"{name} 12 500 600", *lines]))
    (tmp_path / "A1.hea").write_text("A1/3 12 500 1400\nS1 600\n~ 200\nS2 600\n")
    ramp = np.linspace(steps[:, -1], steps[:, 0], 202)[1:-1].T
    assert_reads(tmp_path / "A1.hea", np.concatenate([steps, ramp, steps], axis=1) - 280, gain=200)


@pytest.mark.parametrize(("gain", "per_mv"), [("200/mV", 200), ("2.0(-7)/uV", 2000), ("0", 200), ("-500/mV", -500)])
def test_segments_of_other_gains_units_and_baselines_are_joined_in_mv(tmp_path, gain, per_mv):
    path = write_segments(tmp_path, gain=gain)
    baseline = -7 if "(" in gain else 0
    first, second = STEPS / 1000, (STEPS[::-1] - baseline) / per_mv
    ramp = np.linspace(first[:, -1], second[:, 0], 202)[1:-1].T
    assert_reads(path, np.concatenate([first, ramp, second], axis=1), gain=1)
    assert read_header(path).default_gains == (LEADS if gain == "0" else ())
    (tmp_path / "S2.mat").write_bytes((tmp_path / "S1.mat").read_bytes())
    with pytest.raises(DataError, match="do not match the first samples and checksums"):
        read_header(path).read()


def test_segments_may_have_their_leads_in_another_order_and_other_channels_besides_them(tmp_path):
    order = [*range(11, -1, -1)]
    pressure = np.full((1, STEPS.shape[1]), 7)
    path = write_segments(
        tmp_path, steps=np.concatenate([pressure, STEPS[order]]), leads=("ABP", *(LEADS[lead] for lead in order))
    )
    ramp = np.linspace(STEPS[:, -1], STEPS[:, 0], 202)[1:-1].T
    assert_reads(path, np.concatenate([STEPS, ramp, STEPS], axis=1))
    assert read_header(path).leads == LEADS
    (tmp_path / "S2.mat").write_bytes((tmp_path / "S1.mat").read_bytes() * 2)
    with pytest.raises(DataError, match="do not match the first samples and checksums"):
        read_header(path).read()


def test_a_repeated_segment_is_read_once(tmp_path, monkeypatch):
    read, original = [], wfdb_record._read_signal
    monkeypatch.setattr(wfdb_record, "_read_signal", lambda header: read.append(header) or original(header))
    path = write_segments(tmp_path, "S1 600\nS1 600\nS2 600\n", "A1/3 12 500 1800")
    assert_reads(path, np.concatenate([STEPS, STEPS, STEPS[::-1]], axis=1))
    assert len(read) == 2


def test_the_checksums_of_each_segment_are_compared(tmp_path):
    path = write_segments(tmp_path)
    (tmp_path / "S2.mat").write_bytes((tmp_path / "S1.mat").read_bytes())
    with pytest.raises(DataError, match="do not match the first samples and checksums"):
        read_header(path).read()


def test_a_segment_without_samples_only_lists_leads(tmp_path):
    path = write_segments(tmp_path, "layout 0\nS1 600\nS2 600\n", "A1/3 12 500 1200")
    assert_reads(path, np.concatenate([STEPS, STEPS[::-1]], axis=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "S1 600\nS2 600\n"}, "for each of the 3 parts of a record in several segments"),
        ({"segments": "S1 600\n~ 200\nS9 600\n"}, r"segment S9 cannot be read: .*No such file .*S9\.hea"),
        (
            {"segments": "S1 600\n~ 200\nA1 600\n"},
            "segment A1 cannot be read: it has several segments, but is a segment itself",
        ),
        ({"segments": "~ 600\n~ 200\n~ 600\n"}, "none of its segments has a signal"),
        ({"segments": "S1 500\n~ 200\nS2 600\n"}, "segment S1 has 600 samples at 500 Hz, expected 500 at 500 Hz"),
        ({"first_line": "A1/3 12 500 1500"}, "its segments have 1400 samples, expected 1500"),
        ({"first_line": "A1/3 12 250 1400"}, "segment S1 has 600 samples at 500 Hz, expected 600 at 250 Hz"),
        ({"gain": "200/NU"}, "S1 has I, II, .*, V6, but S2 has I, II, .*, V6 in standard deviations; use the segments"),
        ({"steps": STEPS[:11], "leads": LEADS[:11]}, "S1 has .* V5, V6, but S2 has .* V5; use the segments as records"),
        (
            {"segments": "S1 600\n~ 11401\nS2 600\n", "first_line": "A1/3 12 500 12601"},
            "its segments have 1,200 different samples, but 12,601 with all gaps and repetitions; expected at most 8",
        ),
        (
            {"segments": "S1 600\n" * 11, "first_line": "A1/11 12 500 6600"},
            "its segments have 600 different samples, but 6,600 with all gaps and repetitions",
        ),
    ],
)
def test_segments_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=rf"A1\.hea is not a readable header: .*{message}"):
        read_header(write_segments(tmp_path, **options))


EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def test_the_limb_leads_that_are_absent_follow_from_two_of_them(tmp_path):
    rows = [LEADS.index(lead) for lead in EIGHT]
    record = read_header(write_matrix(tmp_path, "A1", STEPS[rows], leads=EIGHT)).read()
    i, ii = STEPS[0] / 1000, STEPS[1] / 1000
    assert record.leads == LEADS
    assert np.allclose(record.signal[2:6], [ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2], atol=1e-6)
    assert np.allclose(record.signal[[0, 1, *range(6, 12)]], STEPS[rows] / 1000, atol=1e-6)
    # Einthoven's and Goldberger's relations between the leads.
    assert np.allclose(record.signal[0] + record.signal[2], record.signal[1], atol=1e-6)
    assert np.allclose(record.signal[3:6].sum(axis=0), 0, atol=1e-6)


def test_a_limb_lead_in_the_file_is_read_and_not_computed(tmp_path):
    leads = [lead for lead in LEADS if lead != "aVL"]
    record = read_header(write_matrix(tmp_path, "A1", STEPS[[*range(4), *range(5, 12)]], leads=leads)).read()
    assert record.leads == LEADS
    assert np.allclose(record.signal[2], STEPS[2] / 1000, atol=1e-6)


def write_with_thirteenth(folder, line, record_line="A1 13 500 600", samples_per_frame=1):
    """Write twelve leads and a further channel that has this line."""
    path = write_matrix(folder, "A1", STEPS, record_line=record_line)
    more = np.arange(600 * samples_per_frame).reshape(600, samples_per_frame)
    path.with_suffix(".mat").write_bytes(bytes(24) + np.hstack([STEPS.T, more]).astype("<i2").tobytes())
    return edit(path, "#Age", f"{line}\n#Age")


@pytest.mark.parametrize(
    "line",
    [
        "A1.mat 16+24 100/mmHg 16 0 0 0 0 ART",
        "A1.mat 16+24 100/mmHg 16 0 7 7 0 V1",
        "A1.mat 16+24 0/mV 16 0 0 0 0 Pacer",
        "A1.mat 16+24 loud/mV 16 0 0 0 0 Noise",
        "A1.mat 16+24 1000/mV 16 0 0 0 0",
        "A1.mat 16+24",
    ],
)
def test_a_thirteenth_channel_that_cannot_be_read_is_skipped(tmp_path, line):
    path = write_with_thirteenth(tmp_path, line)
    assert_reads(path)
    assert (len(read_header(path).leads), len(read_header(path).channels)) == (12, 13)


def test_a_thirteenth_lead_with_another_name_is_read(tmp_path):
    record = read_header(write_with_thirteenth(tmp_path, "A1.mat 16+24 1000/mV 16 0 0 0 0 vx")).read()
    assert record.leads == (*LEADS, "vx")
    assert np.allclose(record.signal[12], np.arange(600) / 1000)


def test_a_channel_with_other_samples_per_frame_is_skipped(tmp_path):
    assert_reads(write_with_thirteenth(tmp_path, "A1.mat 16x3+24 1/mV 16 0 0 0 0 vx", samples_per_frame=3))


def test_channels_of_other_quantities_are_skipped_also_if_the_twelve_are_not_complete(tmp_path):
    path = write_matrix(
        tmp_path, "A1", STEPS[:5], leads=("II", "ABP", "PLETH", "MLII", "RESP"), record_line="A1 5 125 600"
    )
    for name, unit in (("ABP", "mmHg"), ("PLETH", "NU"), ("RESP", "pm")):
        [line] = [line for line in path.read_text().splitlines() if line.endswith(name)]
        edit(path, line, line.replace("/mV", f"/{unit}"))
    record = read_header(path).read()
    assert (record.leads, record.normalised) == (("II", "MLII"), False)
    assert np.allclose(record.signal, STEPS[[0, 3]] / 1000)
    edit(path, "/mV", "/mmHg")
    with pytest.raises(DataError, match="'mmHg' is not a supported unit"):  # II is a lead, whatever its unit
        read_header(path)
    only = write_matrix(tmp_path, "A2", STEPS[:1], leads=("ABP",), gain="1/mmHg", record_line="A2 1 125 600")
    with pytest.raises(DataError, match="it has no channel in mV, uV, nV, V or NU"):
        read_header(only)


def test_one_of_the_twelve_that_cannot_be_read_is_an_error(tmp_path):
    path = edit(write_matrix(tmp_path, "A1", STEPS), f"{checksum(STEPS[6])} 0 V1", f"{checksum(STEPS[6])} 0")
    with pytest.raises(DataError, match="got the line"):
        read_header(path)


@pytest.mark.parametrize("frame", [2, 5, 600])
def test_samples_per_frame_multiply_the_rate(tmp_path, frame):
    path = write_matrix(tmp_path, "A1", STEPS, record_line=f"A1 12 {500 / frame:.12g} {600 // frame}")
    edit(path, "16+24", f"16x{frame}+24")
    # (leads, frames, samples of a frame): each frame has all samples of the first lead, then those of the second.
    frames = STEPS.reshape(12, -1, frame).transpose(1, 0, 2)
    path.with_suffix(".mat").write_bytes(bytes(24) + frames.astype("<i2").tobytes())
    record = read_header(path).read()
    assert record.rate == pytest.approx(500)
    assert np.allclose(record.signal, STEPS / 1000, atol=1e-6)


def test_leads_with_different_samples_per_frame_are_refused(tmp_path):
    path = write_matrix(tmp_path, "A1", STEPS)
    edit(path, f"16+24 1000/mV 16 0 {STEPS[1, 0]}", f"16x2+24 1000/mV 16 0 {STEPS[1, 0]}")
    with pytest.raises(DataError, match="different numbers of samples per frame are not supported, got I 1, II 2"):
        read_header(path)


@pytest.mark.parametrize(
    ("fmt", "dtype", "zero"),
    [("80", "u1", 128), ("16", "<i2", 0), ("61", ">i2", 0), ("160", "<u2", 32768), ("32", "<i4", 0)],
)
def test_formats_are_read_without_the_number_of_samples(tmp_path, fmt, dtype, zero):
    path = edit(write_matrix(tmp_path, "A1", STEPS // 8, record_line="A1 12 500"), "16+24", fmt)
    path.with_suffix(".mat").write_bytes((STEPS.T // 8 + zero).astype(dtype).tobytes())
    assert_reads(path, STEPS // 8)


def test_two_samples_of_format_212_in_three_bytes_are_read_without_their_number(tmp_path):
    path = edit(write_matrix(tmp_path, "A1", STEPS, record_line="A1 12 500"), "16+24", "212")
    even, odd = (STEPS.T.ravel() & 0xFFF).reshape(-1, 2).T
    packed = np.stack([even & 0xFF, even >> 8 | odd >> 8 << 4, odd & 0xFF], axis=1)
    path.with_suffix(".mat").write_bytes(packed.astype("u1").tobytes())
    assert_reads(path)
