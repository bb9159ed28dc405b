"""Records that may belong to one person are assigned the same person."""

from pathlib import Path

from kdkit_ecg.datasets.folds import assign_persons, neighbours_of_one_patient
from kdkit_ecg.records.wfdb_record import Header


def header(name, patient="", age=81.0, sex="female"):
    return Header(
        path=Path(f"{name}.hea"),
        name=name,
        patient=patient,
        rate=500.0,
        samples=10,
        leads=(),
        files=(),
        gains_per_unit=(),
        baselines=(),
        units=(),
        checks=(),
        channels=(),
        positions=(),
        default_gains=(),
        age=age,
        sex=sex,
        codes=(),
    )


def test_records_of_a_patient_have_one_person_and_others_have_their_own():
    persons = assign_persons([header("A1", "P1"), header("A2", "P1"), header("A3")])
    assert persons == {"A1": "P1", "A2": "P1", "A3": "record A3"}


def test_records_with_the_same_signal_merge_all_records_of_their_patients():
    patients = {"A1": "P1", "A2": "P1", "B1": "P2", "B2": "P2", "C1": ""}
    persons = assign_persons([header(name, patient) for name, patient in patients.items()], [["A2", "B1"]])
    assert set(persons.values()) == {"P1", "record C1"}


def test_neighbouring_ptb_records_with_equal_age_and_sex_are_one_person():
    headers = [header("S0001"), header("S0002"), header("S0003", age=58.0), header("S0004", sex="male")]
    headers += [header("S0005", age=None), header("S0006", age=None), header("S0400"), header("A0001"), header("A0002")]
    persons = assign_persons(headers, neighbours_of_one_patient(headers))
    assert persons["S0001"] == persons["S0002"]
    assert len(set(persons.values())) == len(headers) - 1


def test_neighbouring_records_of_incart_with_equal_age_and_sex_are_one_person():
    headers = [header("I0001"), header("I0002"), header("I0003", age=46.0), header("S0003"), header("I0040")]
    persons = assign_persons(headers, neighbours_of_one_patient(headers))
    assert persons["I0001"] == persons["I0002"]
    assert len(set(persons.values())) == len(headers) - 1


def test_a_patient_in_the_table_joins_ptb_records_and_names_the_person():
    headers = [header("S0001"), header("S0002", "P7"), header("S0010", "P7", age=30.0)]
    persons = assign_persons(headers, neighbours_of_one_patient(headers))
    assert set(persons.values()) == {"P7"}
