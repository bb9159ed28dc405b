"""Headers are read strictly: a malformed field is an error and never replaced by a default."""

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
        path.write_text(text)
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
    ],
)
def test_a_malformed_field_is_refused_with_the_name_of_the_file(header, right, wrong, message):
    with pytest.raises(DataError, match=r"R1\.hea is not a readable header: ") as caught:
        header(GOOD.replace(right, wrong))
    assert message in str(caught.value)


def test_a_header_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"R9\.hea is not a readable header"):
        read_header(tmp_path / "R9.hea")
