"""Name the twelve leads of an ECG and the reduced lead sets of the Challenges, without importing torch."""

from collections.abc import Mapping
from types import MappingProxyType

from kdkit import RecipeError
from kdkit.errors import did_you_mean

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

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
    standard_case = {name.lower(): name for name in LEADS}
    unknown = [name for name in leads if str(name).lower() not in standard_case]
    if unknown:
        # In the case of the leads, so that the nearest name is found by its letters and not by their case.
        cased = str(unknown[0]).upper().replace("AV", "aV")
        raise RecipeError(f"{unknown[0]!r} is not a lead; {did_you_mean(cased, LEADS)}")
    names = tuple(standard_case[name.lower()] for name in leads)
    repeated = [name for position, name in enumerate(names) if name in names[:position]]
    if repeated:
        raise RecipeError(f"expected every lead once, got {repeated[0]!r} twice in {leads!r}; remove one of them")
    return names
