"""Who a record is of, as far as anyone can tell: what might be one person stays together."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from kdkit_ecg.records.header import Header

# Records of the PTB Diagnostic database come patient by patient, at most seven of one (its own index of records), and
# the Challenge numbers them on without naming the patients.
_PTB = re.compile(r"S(\d{4})")
_AT_MOST = 7


def people(headers: Sequence[Header], named: Mapping[str, str], twins: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """Return a person for every record, by its name.

    named: record -> patient, where known; a record that is not named is of a person of its own.
    twins: names of records with one signal, who are one person whatever they are named.

    Records S0001 and so on of PTB, of neighbouring numbers, one age and one sex, count as one person too: to keep two
    patients together costs nothing, and to part one spoils the test.
    """
    joined = _Joined()
    for header in headers:
        joined.join(f"record {header.name}", named.get(header.name) or f"record {header.name}")
    for first, *others in twins:
        for other in others:
            joined.join(f"record {first}", f"record {other}")
    for first_name, second_name in _ptb_neighbours(headers):
        joined.join(f"record {first_name}", f"record {second_name}")
    return {header.name: joined.first(f"record {header.name}") for header in headers}


def _ptb_neighbours(headers: Iterable[Header]) -> Iterable[tuple[str, str]]:
    """Give pairs of records of PTB that may be of one person, each with the next one that looks alike."""
    alike: dict[tuple[float, str], list[tuple[int, str]]] = defaultdict(list)
    for header in headers:
        numbered = _PTB.fullmatch(header.name)
        if numbered and header.age is not None and header.sex:
            alike[header.age, header.sex].append((int(numbered[1]), header.name))
    for each in alike.values():
        each.sort()
        for (number, name), (following, next_name) in pairwise(each):
            if following - number < _AT_MOST:
                yield name, next_name


class _Joined:
    """Names in sets that grow together; each set is known by the first of its names that is a patient's, or its first.

    So a person is called what the table calls them, as long as it calls them anything.
    """

    def __init__(self) -> None:
        self.above: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        tops = sorted({self.first(one), self.first(other)}, key=lambda name: (name.startswith("record "), name))
        for top in tops[1:]:
            self.above[top] = tops[0]

    def first(self, name: str) -> str:
        while name in self.above:
            name = self.above[name]
        return name
