"""Find the records of each person, so that they can be assigned to the same fold."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from kdkit_ecg.records.source import RecordSource

# The PTB Diagnostic database lists its records patient by patient, at most seven of each, and the St Petersburg INCART
# database the 75 parts of the Holter records of 32 patients. The Challenge numbers them in this order, S0001 and I0001
# being the first, without naming the patients.
_NAME = re.compile(r"([SI])(\d{4})")
_RECORDS_PER_PATIENT = 7


def assign_persons(sources: Sequence[RecordSource], same_person: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """Return a person for every record, by the name of the record.

    A record of an unknown patient counts as a separate person, "record NAME".
    same_person: lists of names of records that belong to one person, whoever their patients are.
    """
    persons = _MergedNames()
    for source in sources:
        persons.merge(f"record {source.name}", source.patient or f"record {source.name}")
    for first, *others in same_person:
        for name in others:
            persons.merge(f"record {first}", f"record {name}")
    return {source.name: persons.representative(f"record {source.name}") for source in sources}


def neighbours_of_one_patient(sources: Sequence[RecordSource]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of records that may be of one patient: neighbours in PTB or INCART of the same age and sex.

    Two patients in one fold are harmless, but one patient in two folds invalidates the test.
    """
    records: dict[tuple[str, float, str], list[tuple[int, str]]] = defaultdict(list)  # by database, age and sex
    for source in sources:
        match = _NAME.fullmatch(source.name)
        if match and source.age is not None and source.sex:
            records[match[1], source.age, source.sex].append((int(match[2]), source.name))
    for numbered_names in records.values():
        for (number, name), (next_number, next_name) in pairwise(sorted(numbered_names)):
            if next_number - number < _RECORDS_PER_PATIENT:
                yield name, next_name


def divided_persons(records: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return the persons with records in several folds -> these folds. records: person ("" if unknown) and fold."""
    folds: dict[str, set[int]] = {}
    for person, fold in records:
        if person:
            folds.setdefault(person, set()).add(fold)
    return {person: sorted(in_folds) for person, in_folds in folds.items() if len(in_folds) > 1}


class _MergedNames:
    """Disjoint sets of names (union-find), each represented by its first patient, or by its first record.

    A person therefore has the name in the table of patients, if there is one.
    """

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def merge(self, first: str, second: str) -> None:
        representatives = {self.representative(first), self.representative(second)}
        root, *merged = sorted(representatives, key=lambda name: (name.startswith("record "), name))
        for name in merged:  # empty if both names are already in one set
            self.parent[name] = root

    def representative(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name
