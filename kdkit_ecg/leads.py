"""Views of an ECG batch by lead: what a net that has only some of the twelve leads gets to see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdkit import RecipeError
from kdkit.errors import did_you_mean

if TYPE_CHECKING:  # for readers and type checkers only: it needs torch, which headers and the doctor do without
    from kdkit import Batch

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# The sets of the 2021 challenge; one lead is I, which a watch takes.
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


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Leads:
    """View of the leads named, or of a set of LEAD_SETS: signal (N, 12, T) -> (N, leads, T), person (N, 5) as it is.

    names: the leads in the order in which they are seen. Case does not matter where they are given.

    Raises RecipeError for a number without a set, and for names that are unknown, repeated or none.
    """

    names: tuple[str, ...]
    _runs: tuple[tuple[int, int], ...] = field(compare=False)

    def __init__(self, leads: int | tuple[str, ...]) -> None:
        names = _numbered(leads) if isinstance(leads, int) else _canonical(leads)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "_runs", _runs([LEADS.index(name) for name in names]))

    @property
    def key(self) -> str:
        """All that it sees, e.g. "leads:I,II"."""
        return f"leads:{','.join(self.names)}"

    def __call__(self, batch: "Batch") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ((signal (N, leads, T), person (N, 5)), {}). One run of neighbouring leads is not copied."""
        import torch  # the names of the leads are read by much that needs no torch

        signal, person = batch.inputs
        if signal.shape[1] != len(LEADS):
            raise RecipeError(f"Leads chooses among {len(LEADS)} leads, but the signal has {signal.shape[1]}")
        # Slices, unlike an index, need not be kept on each device, and torch.compile sees through them.
        seen = [signal[:, start:stop] for start, stop in self._runs]
        return (seen[0] if len(seen) == 1 else torch.cat(seen, dim=1), person), {}

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Leads({self.names!r})"


def _numbered(count: int) -> tuple[str, ...]:
    if count not in LEAD_SETS:
        nearest = min(LEAD_SETS, key=lambda known: abs(known - count))
        known = ", ".join(map(str, sorted(LEAD_SETS)))
        raise RecipeError(
            f"there is a set of {known} leads, but none of {count}; did you mean {nearest}? "
            "Leads(('I', 'V5')) takes any others by name"
        )
    return LEAD_SETS[count]


def _canonical(given: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str) or not given:
        raise RecipeError(f"Leads takes a number or a tuple of one name or more, such as ('I', 'II'), not {given!r}")
    known = {name.lower(): name for name in LEADS}
    unknown = [name for name in given if str(name).lower() not in known]
    if unknown:
        raise RecipeError(f"{unknown[0]!r} is not a lead; {did_you_mean(_cased(str(unknown[0])), LEADS)}")
    names = tuple(known[name.lower()] for name in given)
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise RecipeError(f"each lead is seen once, but {repeated[0]!r} comes again in {given!r}; leave it out there")
    return names


def _cased(wrong: str) -> str:
    """Write a wrong name as the leads are written, so that its letters are compared and not its case."""
    return wrong.upper().replace("AV", "aV")


def _runs(places: list[int]) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of each stretch of neighbouring places, in order."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return tuple(runs)
