"""How LRH-Net is trained where it is asked whether distillation helps: what is tuned, what was chosen, which seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from kdkit import Trial
from reproductions.lrhnet.grid import teachers_of
from reproductions.lrhnet.recipe import GUIDED, GUIDES, Augment, Guide, recipe

LEADS = (3, 2)
ROWS = ("alone", "kd", "pmlkd", "smlkd")
TUNING_SEEDS = (100, 101)
SEEDS = {"simulated": tuple(range(200, 210)), "recorded": tuple(range(200, 205))}  # no seed of the tuning among them
SIZE = "quick"
TRAIN = 640  # simulated records to learn from, as many as a study on two cores allows


@dataclass(frozen=True, slots=True)
class Protocol:
    """What every row shares; guide and balance are those of rows with teachers. epochs: of each net."""

    epochs: int
    augment: Augment
    kd_loss: Guide = "softmax-2"
    label_weight: float = 0.3

    @property
    def unguided(self) -> "Protocol":
        """The protocol as a net without teachers knows it."""
        return Protocol(self.epochs, self.augment)

    @property
    def name(self) -> str:
        """What names a cell's folder."""
        return f"{self.epochs}-{self.augment}-{self.kd_loss}-{round(100 * self.label_weight)}"


START = Protocol(epochs=8, augment="none")  # of which each step changes what it tunes
CHOSEN = {  # by lrhnet_effect.py tune
    "simulated": Protocol(epochs=16, augment="light", kd_loss="softmax-7-plain", label_weight=0.1),
    "recorded": Protocol(epochs=24, augment="light", kd_loss="softmax-7-plain", label_weight=0.6),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the tuning: what is varied, and the row whose selection scores choose."""

    what: str
    row: str
    values: Sequence[Mapping[str, Any]]

    def candidates(self, base: Protocol) -> Iterator[Protocol]:
        """Yield the protocols to choose from."""
        for changes in self.values:
            yield replace(base, **changes)


def steps(data: Path | None) -> tuple[Step, ...]:
    """Return the steps of the tuning, each of which begins with what the one before chose.

    Budget and augmentation are tuned for the net alone, so that it is no straw man; loss and balance for vanilla KD, so
    that no multi-level row is favoured.
    """
    budgets = product((12, 24) if data else (8, 16), ("none", "light"))
    return (
        Step("budget", "alone", [{"epochs": epochs, "augment": augment} for epochs, augment in budgets]),
        Step("loss", "kd", [{"kd_loss": kd_loss} for kd_loss in GUIDES]),
        Step("label_weight", "kd", [{"label_weight": label_weight} for label_weight in (0.1, 0.3, 0.6)]),
    )


def kind(data: Path | None) -> str:
    """Return which records these are."""
    return "recorded" if data else "simulated"


def trials(
    row: str, leads: int, seed: int, protocol: Protocol, data: Path | None, *, untested: bool = False
) -> Iterator[Trial]:
    """Yield a net's cell after those of its teachers. Simulated records are other ones for each seed."""
    own = protocol if row in GUIDED else protocol.unguided
    teachers = teachers_of(row, leads)
    for each, count in teachers:
        yield from trials(each, count, seed, protocol, data, untested=untested)
    options = {
        "row": row,
        "leads": leads,
        "rungs": tuple(count for _, count in teachers),
        "data": data,
        "size": SIZE,
        "fold": 0 if data else seed,
        "train": None if data else TRAIN,
        "untested": untested,
        **asdict(own),
    }
    needs = {"teachers": tuple(name(*each, seed, protocol) for each in teachers)}
    yield Trial(name=name(row, leads, seed, protocol), recipe=recipe, options=options, needs=needs, seed=seed)


def name(row: str, leads: int, seed: int, protocol: Protocol) -> str:
    """Return the name of a cell."""
    own = protocol if row in GUIDED else protocol.unguided
    return f"{row}-{leads}-{own.name}-seed{seed}"
