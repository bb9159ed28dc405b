"""Records that may be of one person stay together."""

from pathlib import Path

from kdkit_ecg.datasets.folds import people
from kdkit_ecg.records.header import Header


def header(name, age=81.0, sex="female"):
    return Header(
        path=Path(f"{name}.hea"),
        name=name,
        rate=500.0,
        samples=10,
        leads=(),
        files=(),
        gains=(),
        baselines=(),
        units=(),
        checks=(),
        age=age,
        sex=sex,
        codes=(),
    )


def test_records_of_a_named_patient_are_one_person_and_others_are_their_own():
    of = people([header("A1"), header("A2"), header("A3")], {"A1": "P1", "A2": "P1"})
    assert of == {"A1": "P1", "A2": "P1", "A3": "record A3"}


def test_records_with_one_signal_are_of_one_person_and_so_are_all_records_of_both():
    headers = [header(name) for name in ("A1", "A2", "B1", "B2", "C1")]
    of = people(headers, {"A1": "P1", "A2": "P1", "B1": "P2", "B2": "P2"}, [["A2", "B1"]])
    assert set(of.values()) == {"P1", "record C1"}


def test_neighbouring_records_of_ptb_with_one_age_and_sex_are_one_person():
    headers = [header("S0001"), header("S0002"), header("S0003", age=58.0), header("S0004", sex="male")]
    headers += [header("S0005", age=None), header("S0006", age=None), header("S0400"), header("A0001"), header("A0002")]
    of = people(headers, {})
    assert of["S0001"] == of["S0002"]
    assert len(set(of.values())) == len(headers) - 1


def test_what_a_table_says_of_ptb_holds_and_is_the_name_of_the_person():
    of = people([header("S0001"), header("S0002"), header("S0010", age=30.0)], {"S0002": "P7", "S0010": "P7"})
    assert set(of.values()) == {"P7"}
