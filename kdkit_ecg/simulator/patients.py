"""Sample the patient of a record, and the findings that occur together in one person."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdkit_ecg.person import Sex
from kdkit_ecg.simulator.randomness import RangeSampler

Choices = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A person; findings: abbreviations of the 2020 challenge, age: years. An age or a sex of None is unknown."""

    findings: frozenset[str]
    age: float | None
    sex: Sex | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Alternative findings; a person has at most one of the choices.

    requires: one of these must have been drawn before. excludes: none of these may have been.
    """

    choices: Choices
    requires: frozenset[str] = frozenset()
    excludes: frozenset[str] = frozenset()

    def allows(self, findings: set[str]) -> bool:
        """Return whether a person with these findings may have one of the group."""
        required = not self.requires or not self.requires.isdisjoint(findings)
        return required and self.excludes.isdisjoint(findings)


_SLOW_SINUS = frozenset({"NSR", "SB", "SA"})
_WIDE = frozenset({"LBBB", "CRBBB", "NSIVCB", "PR"})

# The combinations follow the challenge's databases. Sinus rhythm (NSR) is annotated next to other findings; SB, STach
# and SA replace it. Brady is any other slow rhythm (slow fibrillation, junctional escape), and is sometimes annotated
# next to SB. A long PR is annotated as IAVB, LPR or both, depending only on the reader. LAnFB implies LAD. A paced QRS
# is not interpreted further, nor are T and Q of any wide QRS, because their changes are secondary.
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
    Group(choices={("IAVB",): 0.06, ("LPR",): 0.05, ("IAVB", "LPR"): 0.09}, requires=_SLOW_SINUS),
    Group(
        choices={("PAC",): 0.14, ("PVC",): 0.1, ("PAC", "PVC"): 0.03},
        requires=frozenset({"NSR", "SB"}),
        excludes=frozenset({"SA"}),
    ),
    Group(choices={("PVC",): 0.15}, requires=frozenset({"AF", "Brady"}), excludes=frozenset({"SB"})),
    Group(
        choices={
            ("CRBBB",): 0.07,
            ("CRBBB", "LAnFB", "LAD"): 0.02,
            ("IRBBB",): 0.08,
            ("LBBB",): 0.08,
            ("NSIVCB",): 0.08,
            ("LAnFB", "LAD"): 0.06,
        },
        excludes=frozenset({"PR"}),
    ),
    Group(choices={("LAD",): 0.1}, excludes=frozenset({"LAnFB", "PR"})),
    Group(choices={("RAD",): 0.12}, excludes=frozenset({"LAnFB", "LAD", "LBBB", "CRBBB", "IRBBB", "PR"})),
    Group(choices={("LQRSV",): 0.09}, excludes=frozenset({"LBBB", "PR"})),
    Group(choices={("QAb",): 0.18}, excludes=_WIDE | {"IRBBB", "LAnFB", "LAD", "RAD"}),
    Group(choices={("TAb",): 0.14, ("TInv",): 0.13}, excludes=_WIDE | {"AFL"}),
    Group(choices={("LQT",): 0.16}, requires=_SLOW_SINUS, excludes=frozenset({"IAVB", "LPR"})),
)

# Years by which a finding shifts the mean age of its patients from 54.
_OLDER = {"AF": 12, "AFL": 9, "PR": 16, "LBBB": 10, "CRBBB": 9, "LAnFB": 8, "IAVB": 7, "QAb": 6, "PVC": 5}
_YOUNGER = {"SA": -14, "IRBBB": -10, "RAD": -9, "NSR": -4, "STach": -3}
# Added to the probability that a person is female, which is one half.
_FEMALE = {"LQT": 0.12, "TAb": 0.1, "TInv": 0.06, "STach": 0.05, "SB": -0.1, "IRBBB": -0.12, "QAb": -0.1, "AFL": -0.1}


def sample_patient(sampler: RangeSampler) -> Patient:
    """Return a person's findings, age and sex; about one age in 20 and one sex in 30 is unknown."""
    findings: set[str] = set()
    for group in GROUPS:
        # Drawn even if the group is excluded, so that every person uses as many random numbers.
        choice = sampler.choose(group.choices)
        if group.allows(findings):
            findings.update(choice)
    shift = sum((_OLDER | _YOUNGER).get(finding, 0) for finding in findings)
    age = float(np.clip(np.round(54 + shift + 15 * sampler.generator.standard_normal()), 18, 95))
    is_female = sampler.chance(0.5 + sum(_FEMALE.get(finding, 0.0) for finding in findings))
    return Patient(
        findings=frozenset(findings),
        age=None if sampler.chance(0.05) else age,
        sex=None if sampler.chance(0.03) else "female" if is_female else "male",
    )
