"""Age and sex of a person: parsed from the text of all formats, and as a vector for a network, without torch."""

import math
import re
from collections.abc import Collection, Mapping
from datetime import date
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sex = Literal["female", "male"]

FEATURES = ("age / 100", "age known", "female", "male", "sex known")  # of the vector of a person
HIDDEN = "0"  # in place of a feature that is 0 for every person

_SEXES: Mapping[str, Sex] = MappingProxyType(
    {
        # In German, w stands for weiblich.
        **dict.fromkeys(("f", "female", "woman", "w", "weiblich"), "female"),
        **dict.fromkeys(("m", "male", "man", "m\u00e4nnlich"), "male"),
    }
)
_DAYS = {"y": 365.25, "m": 365.25 / 12, "w": 7.0, "d": 1.0}  # in a unit of age, by its first letter
_OLDEST = 120  # years

# Numbers have ASCII digits and a bounded length, so that int() and the patterns take little time.
_AGE = re.compile(r"[-+]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE][-+]?[0-9]{1,4})?")
# 071Y as in DICOM, P71Y as in ISO 8601, and words. A single letter m may also mean male, unless it is a capital.
_AGE_WITH_UNIT = re.compile(
    r"P?([0-9]{1,5})\s*([DWMYdwy]|(?i:days?|weeks?|wks?|months?|mos?|years?|yrs?)\.?)(?:\s*(?i:old))?"
)


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if the text is not an age from 0 to 120.

    "071Y" as in DICOM, "P71Y" as in ISO 8601 and "71 years" are 71; months, weeks and days are converted.
    """
    if with_unit := _AGE_WITH_UNIT.fullmatch(text):
        years = int(with_unit[1]) * _DAYS[with_unit[2][0].lower()] / _DAYS["y"]
    elif _AGE.fullmatch(text):
        years = float(text)
    else:
        return None
    return years if math.isfinite(years) and 0 <= years <= _OLDEST else None


def age_between(born: str, recorded: str) -> float | None:
    """Return the years between dates such as 19710123, None if one is unknown, or if they are not from 0 to 120."""
    try:
        first, second = (date(int(text[:4]), int(text[4:6]), int(text[6:8])) for text in (born, recorded))
    except ValueError:
        return None
    years = (second - first).days / _DAYS["y"]
    return years if 0 <= years <= _OLDEST else None


def parse_sex(text: str) -> Sex | None:
    """Return the sex that a letter or a word means, None for any other text."""
    return _SEXES.get(text.strip().lower())


def features_without(hidden: Collection[str]) -> tuple[str, ...]:
    """Return FEATURES with HIDDEN in place of those of the age and of the sex, if "age" or "sex" is hidden."""
    roles = ("age", "age", "sex", "sex", "sex")
    return tuple(HIDDEN if role in hidden else name for role, name in zip(roles, FEATURES, strict=True))


def person_vector(age: float | None, sex: Sex | None) -> NDArray[np.float32]:
    """Return FEATURES, (5,) float32; age in years. The features of an unknown age or sex are 0."""
    known_age = age is not None
    return np.array([(age or 0) / 100, known_age, sex == "female", sex == "male", sex is not None], dtype=np.float32)
