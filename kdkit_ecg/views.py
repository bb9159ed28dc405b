"""Select the leads that a network receives from a batch, so that teacher and student can use different leads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kdkit import Batch, RecipeError
from kdkit_ecg.leads import LEADS, lead_names


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Leads:
    """View that selects leads: signal (N, 12, T) -> (N, leads, T); person (N, 5) is passed unchanged.

    leads: the size of a set in LEAD_SETS, or a tuple of names in any case. The order of the names is the order of the
    channels. among: the leads of the data if they differ from the twelve, such as `data.leads` of Records; `leads` are
    then some of these names.

    Raises RecipeError for a number without a set, and for names that are unknown, repeated or missing.
    """

    names: tuple[str, ...]
    among: tuple[str, ...]
    _slices: tuple[tuple[int, int], ...] = field(compare=False)

    def __init__(self, leads: int | tuple[str, ...], *, among: Sequence[str] = LEADS) -> None:
        names = lead_names(leads, among)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "among", tuple(among))
        slices: list[tuple[int, int]] = []  # (start, stop) of each range of consecutive channels
        for channel in map(self.among.index, names):
            if slices and slices[-1][1] == channel:
                slices[-1] = (slices[-1][0], channel + 1)
            else:
                slices.append((channel, channel + 1))
        object.__setattr__(self, "_slices", tuple(slices))

    @property
    def key(self) -> str:
        """The identity of the view in the keys of the teacher cache, e.g. "leads:I,II"."""
        return f"leads:{','.join(self.names)}" + ("" if self.among == LEADS else f" of {','.join(self.among)}")

    def describe(self, preparation: Mapping[str, Any]) -> dict[str, Any]:
        """Return a preparation of records with these leads; no step mixes leads, so they are selected first.

        Raises RecipeError for data of other leads than `among`, or with them in another order.
        """
        available = tuple(preparation.get("leads", self.among))
        if available != self.among:
            raise RecipeError(
                f"{self!r} selects from {', '.join(self.among)}, but the data have {', '.join(available)}; pass "
                "among=data.leads"
            )
        steps = [
            {**step, "names": list(self.names)} if step.get("step") == "leads" else step
            for step in preparation.get("steps", ())
        ]
        return {**preparation, "leads": list(self.names), "steps": steps}

    def __call__(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ((signal (N, leads, T), person (N, 5)), {}). A single range of neighbouring leads is not copied."""
        signal, person = batch.inputs
        if signal.shape[1] != len(self.among):
            raise RecipeError(
                f"Leads expects a signal with {len(self.among)} leads, got one with {signal.shape[1]}; "
                "among=data.leads selects from those of the data"
            )
        # Slices need no index tensor on each device, and torch.compile traces them without a graph break.
        parts = [signal[:, start:stop] for start, stop in self._slices]  # each (N, stop - start, T)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), person), {}

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Leads({self.names!r})" if self.among == LEADS else f"Leads({self.names!r}, among={self.among!r})"
