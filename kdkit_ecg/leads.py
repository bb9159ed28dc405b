"""Name the twelve leads of an ECG and the reduced lead sets of the Challenges, without importing torch."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType

from kdkit import RecipeError
from kdkit.errors import did_you_mean
from kdkit.utils.validation import is_whole_number

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# The limb leads, by their factors of I and II: III = II - I (Einthoven), and the augmented leads (Goldberger), such as
# aVR = -(I + II) / 2. All six lie in one plane and no two on one axis, so any two of them give the others.
LIMB_LEADS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"I": (1.0, 0.0), "II": (0.0, 1.0), "III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
)

# The lead sets of the 2021 Challenge, and lead I alone, which a smartwatch records.
LEAD_SETS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        12: LEADS,
        6: LEADS[:6],
        4: ("I", "II", "III", "V2"),
        3: ("I", "II", "V2"),
        2: ("I", "II"),
        1: ("I",),
    }
)

_STANDARD_CASE = {lead.lower(): lead for lead in LEADS}
_CHEST_LEADS = {f"C{number}": f"V{number}" for number in range(1, 7)}
# Prefixes as in "Lead I", "MDC_ECG_LEAD_I" and "EKG I"; D, as in "DII", means lead on Spanish and Portuguese devices.
_PREFIX = re.compile(r"^(mdc[\s_-]+)?(e[ck]g[\s_-]+)?(lead[\s_-]*)?(d(?=i{1,3}$))?", re.IGNORECASE)


def standard_name(name: str) -> str:
    """Return one of the twelve names for a name such as "AVR", "v1" or "Lead I"; any other name as it is."""
    return _STANDARD_CASE.get(_PREFIX.sub("", name).lower(), name)


def standard_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the leads of a record by `standard_name`, and C1 to C6 as V1 to V6.

    C1 to C6 are the chest electrodes in IEC 60601-2-25. Without I, II and all six, C3 may be an electrode of an EEG.
    """
    texts = tuple(names)
    electrodes = [_PREFIX.sub("", name).upper() for name in texts]
    are_chest_leads = {"I", "II", *_CHEST_LEADS} <= {*electrodes} and not {*_CHEST_LEADS.values()} & {*electrodes}
    return tuple(
        _CHEST_LEADS[electrode] if are_chest_leads and electrode in _CHEST_LEADS else standard_name(name)
        for name, electrode in zip(texts, electrodes, strict=True)
    )


def missing_leads(names: Collection[str], leads: Sequence[str] = LEADS) -> list[str]:
    """Return the leads that are absent from the names and cannot be derived: any two limb leads give the other four."""
    limb = sum(lead in names for lead in LIMB_LEADS)
    return [lead for lead in leads if lead not in names and not (limb >= 2 and lead in LIMB_LEADS)]


def derivation(names: Sequence[str], lead: str) -> dict[str, float]:
    """Return the factors of two limb leads in `names` that give another limb lead.

    These are I and II if both are present. Otherwise, they are the pair that amplifies noise least, with the smallest
    sum of absolute factors.
    """
    present = [name for name in LIMB_LEADS if name in names]
    e, f = LIMB_LEADS[lead]
    solutions = []
    for first, second in [("I", "II")] if {"I", "II"} <= set(present) else combinations(present, 2):
        # Cramer's rule for lead = p first + q second, each being a combination of I and II. The determinant is never 0,
        # because no two limb leads share an axis.
        (a, b), (c, d) = LIMB_LEADS[first], LIMB_LEADS[second]
        determinant = a * d - b * c
        solutions.append({first: (e * d - f * c) / determinant, second: (a * f - b * e) / determinant})
    return min(solutions, key=lambda factors: sum(map(abs, factors.values())))


def lead_names(leads: int | tuple[str, ...], available: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a lead set of `LEAD_SETS`, or the names themselves in their standard case.

    Raises RecipeError for a number without a set, and for names that are not available, repeated or missing.
    """
    if is_whole_number(leads):
        count = leads
        if count not in LEAD_SETS:
            nearest = min(LEAD_SETS, key=lambda size: abs(size - count))
            sizes = ", ".join(map(str, sorted(LEAD_SETS)))
            raise RecipeError(
                f"expected the size of a lead set ({sizes}), got {leads}; did you mean {nearest}? "
                "Leads(('I', 'V5')) selects any leads by name"
            )
        return lead_names(LEAD_SETS[count], available)
    if isinstance(leads, int | str) or not leads:
        raise RecipeError(f"Leads expects a number or a non-empty tuple of names, such as ('I', 'II'), got {leads!r}")
    by_case = {name.lower(): name for name in available}
    unknown = [name for name in leads if str(name).lower() not in by_case]
    if unknown:
        # In the case of the leads, so that the nearest name is found regardless of case.
        cased = str(unknown[0]).upper().replace("AV", "aV")
        among = "" if tuple(available) == LEADS else " of these data"
        raise RecipeError(f"{unknown[0]!r} is not a lead{among}; {did_you_mean(cased, available)}")
    names = tuple(by_case[name.lower()] for name in leads)
    require_distinct_leads(names)
    return names


def require_distinct_leads(names: Sequence[str]) -> None:
    """Raise RecipeError for a lead that occurs twice."""
    repeated = [name for position, name in enumerate(names) if name in names[:position]]
    if repeated:
        raise RecipeError(
            f"expected every lead once, got {repeated[0]!r} twice in {tuple(names)!r}; remove one of them"
        )
