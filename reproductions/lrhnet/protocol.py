"""The protocol of the study of distillation's effect: the tuning steps, the chosen hyperparameters, and the seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from kdkit import Trial
from reproductions.lrhnet.grid import teachers_of
from reproductions.lrhnet.recipe import KD_LOSSES, TAUGHT_ROWS, Augment, KDLoss, recipe

LEADS = (3, 2)
ROWS = ("alone", "kd", "pmlkd", "smlkd")
TUNING_SEEDS = (100, 101)
SEEDS = {"simulated": tuple(range(200, 210)), "real": tuple(range(200, 205))}  # without the seeds of the tuning
SIZE = "quick"
TRAIN = 640  # simulated training records, as many as a study on two cores allows


@dataclass(frozen=True, slots=True)
class Protocol:
    """The hyperparameters that all rows share; kd_loss and label_weight are those of rows with teachers.

    epochs: of each network.
    """

    epochs: int
    augment: Augment
    kd_loss: KDLoss = "softmax-2"
    label_weight: float = 0.3

    def for_row(self, row: str) -> "Protocol":
        """Return the protocol without the hyperparameters that do not affect this row, so that trials are shared."""
        return self if row in TAUGHT_ROWS else Protocol(self.epochs, self.augment)

    @property
    def name(self) -> str:
        """The part of a trial's name."""
        return f"{self.epochs}-{self.augment}-{self.kd_loss}-{round(100 * self.label_weight)}"


START = Protocol(epochs=8, augment="none")  # each tuning step changes some of it
CHOSEN = {  # by `run_effect tune`
    "simulated": Protocol(epochs=16, augment="light", kd_loss="softmax-7-plain", label_weight=0.1),
    "real": Protocol(epochs=24, augment="light", kd_loss="softmax-7-plain", label_weight=0.3),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the tuning: values of some hyperparameters, and the row whose validation scores choose."""

    name: str
    row: str
    values: Sequence[Mapping[str, Any]]

    def candidates(self, base: Protocol) -> Iterator[Protocol]:
        """Yield the protocols to choose from."""
        for changes in self.values:
            yield replace(base, **changes)


def steps(data: Path | None) -> tuple[Step, ...]:
    """Return the steps of the tuning, each of which starts from the choice of the previous one.

    Budget and augmentation are tuned for the network alone, so that it is a fair baseline; the loss and the label
    weight for vanilla KD, so that no multi-level row is favoured.
    """
    budgets = product((12, 24) if data else (8, 16), ("none", "light"))
    return (
        Step("budget", "alone", [{"epochs": epochs, "augment": augment} for epochs, augment in budgets]),
        Step("loss", "kd", [{"kd_loss": kd_loss} for kd_loss in KD_LOSSES]),
        Step("label_weight", "kd", [{"label_weight": label_weight} for label_weight in (0.1, 0.3, 0.6)]),
    )


def kind(data: Path | None) -> str:
    """Return the kind of the records, a key of CHOSEN and SEEDS."""
    return "real" if data else "simulated"


def trials(
    row: str, leads: int, seed: int, protocol: Protocol, data: Path | None, *, without_test: bool = False
) -> Iterator[Trial]:
    """Yield a network's trial after those of its teachers. Simulated records differ by seed."""
    teachers = teachers_of(row, leads)
    for teacher_row, teacher_leads in teachers:
        yield from trials(teacher_row, teacher_leads, seed, protocol, data, without_test=without_test)
    options = {
        "row": row,
        "leads": leads,
        "teacher_leads": tuple(teacher_leads for _, teacher_leads in teachers),
        "data": data,
        "size": SIZE,
        "fold": 0 if data else seed,
        "train": None if data else TRAIN,
        "without_test": without_test,
        **asdict(protocol.for_row(row)),
    }
    needs = {"teachers": tuple(trial_name(*teacher, seed, protocol) for teacher in teachers)}
    yield Trial(name=trial_name(row, leads, seed, protocol), recipe=recipe, options=options, needs=needs, seed=seed)


def trial_name(row: str, leads: int, seed: int, protocol: Protocol) -> str:
    """Return the name of a trial."""
    return f"{row}-{leads}-{protocol.for_row(row).name}-seed{seed}"
