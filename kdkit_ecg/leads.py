"""Name the twelve leads of an ECG and the reduced lead sets of the Challenges, without importing torch."""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from kdkit import RecipeError
from kdkit.errors import did_you_mean

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# The limb leads that follow from I and II, with their factors of I and II: III = II - I (Einthoven), and the augmented
# leads (Goldberger), such as aVR = -(I + II) / 2.
DERIVED: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
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
_PREFIX = re.compile(r"^(mdc[\s_-]+)?(ecg[\s_-]+)?(lead[\s_-]*)?", re.IGNORECASE)  # of "Lead I" or "MDC_ECG_LEAD_I"


def standard_name(name: str) -> str:
    """Return one of the twelve names for a name such as "AVR", "v1" or "Lead I"; any other name as it is."""
    return _STANDARD_CASE.get(_PREFIX.sub("", name).lower(), name)


def missing_leads(names: Collection[str]) -> list[str]:
    """Return the leads of the twelve that are absent and cannot be derived.

    If I, II and V1 to V6 are present, the others follow from I and II. Otherwise no lead is derived, so that a record
    with a reduced set of leads keeps its set.
    """
    absent = [lead for lead in LEADS if lead not in names]
    return absent if set(absent) - DERIVED.keys() else []


def lead_names(leads: int | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in a lead set of `LEAD_SETS`, or the given names in their standard case.

    Raises RecipeError for a number without a set, and for names that are unknown, repeated or missing.
    """
    if isinstance(leads, int):
        if leads not in LEAD_SETS:
            nearest = min(LEAD_SETS, key=lambda size: abs(size - leads))
            sizes = ", ".join(map(str, sorted(LEAD_SETS)))
            raise RecipeError(
                f"expected the size of a lead set ({sizes}), got {leads}; did you mean {nearest}? "
                "Leads(('I', 'V5')) selects any leads by name"
            )
        return LEAD_SETS[leads]
    if isinstance(leads, str) or not leads:
        raise RecipeError(f"Leads expects a number or a non-empty tuple of names, such as ('I', 'II'), got {leads!r}")
    unknown = [name for name in leads if str(name).lower() not in _STANDARD_CASE]
    if unknown:
        # In the case of the leads, so that the nearest name is found by its letters and not by their case.
        cased = str(unknown[0]).upper().replace("AV", "aV")
        raise RecipeError(f"{unknown[0]!r} is not a lead; {did_you_mean(cased, LEADS)}")
    names = tuple(_STANDARD_CASE[name.lower()] for name in leads)
    repeated = [name for position, name in enumerate(names) if name in names[:position]]
    if repeated:
        raise RecipeError(f"expected every lead once, got {repeated[0]!r} twice in {leads!r}; remove one of them")
    return names
