"""Headers are read strictly: a malformed field is an error and never replaced by a default."""

import os
import time

import pytest

from kdkit import DataError
from kdkit_ecg.records.header import read_header

GOOD = """R1 2 500 5000 05-Feb-2020 11:39:16
R1.mat 16+24 1000/mV 16 0 28 -1716 0 I
R1.mat 16x1+24 1000.0(5)/mv 16 0 7 2029 0 II
#Age: 74
# Sex: F
#Dx: 426783006, 164889003,426783006,
"""


@pytest.fixture
def header(tmp_path):
    def read(text):
        path = tmp_path / "R1.hea"
        path.write_text(text, encoding="utf-8")
        return read_header(path)

    return read


def test_a_header_describes_the_signal_and_the_person(header):
    parsed = header(GOOD)
    assert (parsed.name, parsed.rate, parsed.samples, parsed.leads) == ("R1", 500.0, 5000, ("I", "II"))
    assert (parsed.gains, parsed.baselines, parsed.files) == ((1000.0, 1000.0), (0, 5), ("R1.mat",))
    assert (parsed.age, parsed.sex, parsed.codes) == (74.0, "female", ("426783006", "164889003"))
    assert not parsed.normalised


def test_a_gain_per_microvolt_becomes_steps_per_millivolt(header):
    assert header(GOOD.replace("1000/mV", "1/uV")).gains == (1000.0, 1000.0)


def test_abbreviations_are_not_codes(header):
    assert header(GOOD.replace("426783006", "RBBB")).codes == ("164889003",)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("R1 2", "R1 3", "a line for each of the 3 leads in the first line, got 2 lines"),
        ("R1 2", "R1/4 2", "several segments"),
        ("R1 2", "R1 two", "number of leads must be a whole number"),
        (" 500 ", " fast ", "rate must be a number of Hz above 0, got 'fast'"),
        (" 500 ", " 0 ", "rate must be a number of Hz above 0"),
        ("5000", "-5000", "number of samples must be a whole number"),
        ("1000/mV", "loud/mV", "got the line"),
        ("1000/mV", "0/mV", "gain of 0"),
        ("1000/mV", "1000/furlong", "'furlong' is not a supported unit"),
        ("0 II", "0 i", "expected every lead once"),
        ("0 II", "0 ", "got the line"),
        ("R1 2 500 5000", "<html>", "first line"),
        ("Age", "\0", "binary"),
        ("5000", "5" * 3000, "number of samples must be a whole number above 0, got '555"),
        ("5000", "\u0665000", "number of samples must be a whole number above 0"),
        ("R1 2", "R1 \u0662", "number of leads must be a whole number above 0"),
        (" 500 ", " \u0665\u0660\u0660 ", "rate must be a number of Hz above 0"),
        (" 500 ", f" 0.{'0' * 400}1 ", "rate must be a number of Hz above 0"),
        ("R1 2", "R1 2000", "at most 1,024 leads, got 2,000"),
        ("R1 2", "R1/20000 2", "at most 10,000 segments, got 20,000"),
        ("R1 2", "../R1 2", "the name of a record in the folder of the header, got '../R1'"),
        ("R1.mat 16+24", "../R1.mat 16+24", "the name of a file in the folder of the header"),
        ("R1.mat 16+24", "sub/../../R1.mat 16+24", "the name of a file in the folder of the header"),
        ("R1.mat 16+24", "/etc/R1.mat 16+24", "the name of a file in the folder of the header"),
        ("16+24", "\u0661\u0666+24", "got the line"),
        ("16+24", "16x" + "1" * 19, "got the line"),
        ("1000/mV", "1" * 4000, "got the line"),
        ("1000/mV", "1" * 5000, "lines of at most 4,096 characters, got one of 5,0"),
        ("1000/mV", "1e308/mV", "a gain of 1e+308 leaves no signal"),
        ("1000/mV", "-1e999/mV", "a gain of -inf leaves no signal"),
        ("#Age", "#" * (1 << 20) + "\n#Age", "at most 1,048,576 bytes, got more"),
    ],
)
def test_a_malformed_field_is_refused_with_the_name_of_the_file(header, right, wrong, message):
    with pytest.raises(DataError, match=r"R1\.hea is not a readable header: ") as caught:
        header(GOOD.replace(right, wrong))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["\u0667\u0664", "7_4", "7" * 5000, "1e999", "74 beers", "P74", "74 m", "-1", "\u0667\u0661Y"]
)
def test_an_age_that_is_not_a_number_of_ascii_digits_is_unknown(header, text):
    assert header(GOOD.replace("74", text)).age is None


def test_a_code_is_a_number_of_up_to_18_ascii_digits(header):
    assert header(GOOD.replace("426783006", f"\u0664\u0662,{'4' * 5000}")).codes == ("164889003",)


@pytest.mark.parametrize(
    "part", ["9" * 4000, "1" * 4000 + ".", " " * 4000 + "!", "a/" * 2000, ".a" * 2000, "1e" * 2000, "/" * 4000]
)
def test_a_line_that_does_not_match_takes_linear_time(header, part):
    start = time.process_time()
    for line in (part, f"R1.mat 16 {part}", f"R1.mat 16+24 1000/mV 16 0 {part}"):
        with pytest.raises(DataError, match="got the line"):
            header(f"R1 1 500 5000\n{line}\n")
    assert time.process_time() - start < 0.5


def test_a_long_suffix_is_not_looked_for_in_every_case(header):
    start = time.process_time()
    assert header(GOOD.replace("R1.mat", f"R1.{'m' * 60}")).files == (f"R1.{'m' * 60}",)
    assert time.process_time() - start < 0.5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.hea")
    (tmp_path / "zero.hea").symlink_to("/dev/zero")
    (tmp_path / "folder.hea").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(DataError, match=rf"{name}\.hea is not a readable header: expected a regular file"):
            read_header(tmp_path / f"{name}.hea")


def test_a_link_to_a_header_is_read(tmp_path, header):
    header(GOOD)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "R1.hea").symlink_to(tmp_path / "R1.hea")
    assert read_header(tmp_path / "links" / "R1.hea").name == "R1"


def test_a_header_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"R9\.hea is not a readable header"):
        read_header(tmp_path / "R9.hea")
