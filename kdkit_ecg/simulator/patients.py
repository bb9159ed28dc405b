"""Draw who a record is of, and which findings go together in one person."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdkit_ecg.simulator.randomness import RandomRange

Choices = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A person; findings: abbreviations of the 2020 challenge, age: years. An age or a sex of None is unknown."""

    findings: frozenset[str]
    age: float | None
    female: bool | None

    def vector(self) -> tuple[float, float, float, float, float]:
        """Return age/100, age known, female, male, sex known; what is not known is 0."""
        age = (0.0, 0.0) if self.age is None else (self.age / 100, 1.0)
        sex = (0.0, 0.0, 0.0) if self.female is None else (float(self.female), float(not self.female), 1.0)
        return (*age, *sex)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Findings of which a person has at most one choice.

    needs: one of these must have been found before. bars: none of these may have been.
    """

    choices: Choices
    needs: frozenset[str] = frozenset()
    bars: frozenset[str] = frozenset()

    def open_to(self, found: set[str]) -> bool:
        """Say whether a person with these findings may have one of the group."""
        return (not self.needs or not self.needs.isdisjoint(found)) and self.bars.isdisjoint(found)


_SLOW_SINUS = frozenset({"NSR", "SB", "SA"})
_WIDE = frozenset({"LBBB", "CRBBB", "NSIVCB", "PR"})

# How labels go together follows the challenge's databases. Sinus rhythm (NSR) is said beside other findings, and SB,
# STach and SA stand in its place. Brady is any other slow rhythm (slow fibrillation, junctional escape), and now and
# then said beside SB. A long PR is called IAVB, LPR or both, by the reader's habit alone. LAnFB implies LAD. A paced
# QRS, and for T and Q any wide one, is not read further, since its changes are secondary.
GROUPS = (
    Group(
        choices={
            ("NSR",): 0.31,
            ("SB",): 0.12,
            ("SB", "Brady"): 0.02,
            ("STach",): 0.12,
            ("SA",): 0.07,
            ("SA", "SB"): 0.02,
            ("AF",): 0.09,
            ("AF", "Brady"): 0.03,
            ("AFL",): 0.09,
            ("Brady",): 0.05,
            ("PR",): 0.08,
        }
    ),
    Group(choices={("IAVB",): 0.06, ("LPR",): 0.05, ("IAVB", "LPR"): 0.09}, needs=_SLOW_SINUS),
    Group(
        choices={("PAC",): 0.14, ("PVC",): 0.1, ("PAC", "PVC"): 0.03},
        needs=frozenset({"NSR", "SB"}),
        bars=frozenset({"SA"}),
    ),
    Group(choices={("PVC",): 0.15}, needs=frozenset({"AF", "Brady"}), bars=frozenset({"SB"})),
    Group(
        choices={
            ("CRBBB",): 0.07,
            ("CRBBB", "LAnFB", "LAD"): 0.02,
            ("IRBBB",): 0.08,
            ("LBBB",): 0.08,
            ("NSIVCB",): 0.08,
            ("LAnFB", "LAD"): 0.06,
        },
        bars=frozenset({"PR"}),
    ),
    Group(choices={("LAD",): 0.1}, bars=frozenset({"LAnFB", "PR"})),
    Group(choices={("RAD",): 0.12}, bars=frozenset({"LAnFB", "LAD", "LBBB", "CRBBB", "IRBBB", "PR"})),
    Group(choices={("LQRSV",): 0.09}, bars=frozenset({"LBBB", "PR"})),
    Group(choices={("QAb",): 0.18}, bars=_WIDE | {"IRBBB", "LAnFB", "LAD", "RAD"}),
    Group(choices={("TAb",): 0.14, ("TInv",): 0.13}, bars=_WIDE | {"AFL"}),
    Group(choices={("LQT",): 0.16}, needs=_SLOW_SINUS, bars=frozenset({"IAVB", "LPR"})),
)

# Years by which a finding shifts the mean age of those who have it, from 54.
_AGEING = {"AF": 12, "AFL": 9, "PR": 16, "LBBB": 10, "CRBBB": 9, "LAnFB": 8, "IAVB": 7, "QAb": 6, "PVC": 5}
_YOUTH = {"SA": -14, "IRBBB": -10, "RAD": -9, "NSR": -4, "STach": -3}
# How much likelier a woman, in parts of 1, from one half.
_FEMALE = {"LQT": 0.12, "TAb": 0.1, "TInv": 0.06, "STach": 0.05, "SB": -0.1, "IRBBB": -0.12, "QAb": -0.1, "AFL": -0.1}


def draw_patient(dice: RandomRange) -> Patient:
    """Draw a person's findings, age and sex; about one age in 20 and one sex in 30 is unknown."""
    found: set[str] = set()
    for group in GROUPS:
        drawn = dice.pick(group.choices)  # also where the group is closed, so that the numbers drawn stay in step
        if group.open_to(found):
            found.update(drawn)
    shift = sum((_AGEING | _YOUTH).get(finding, 0) for finding in found)
    age = float(np.clip(np.round(54 + shift + 15 * dice.random.standard_normal()), 18, 95))
    female = dice.chance(0.5 + sum(_FEMALE.get(finding, 0.0) for finding in found))
    return Patient(
        findings=frozenset(found),
        age=None if dice.chance(0.05) else age,
        female=None if dice.chance(0.03) else female,
    )
