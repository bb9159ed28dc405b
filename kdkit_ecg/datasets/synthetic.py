"""Data without a download: simulated twelve-lead ECGs that show the 24 classes of the 2020 challenge."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit import Data, RecipeError, Task
from kdkit.errors import did_you_mean
from kdkit_ecg.augmentations import check_augmentations
from kdkit_ecg.datasets.signal_split import Augmentations, SignalSplit
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.records.filters import zscore
from kdkit_ecg.simulator import Record, Simulator

Scaling = Literal["zscore", "raw"]

VERSION = 1  # of the simulator: goes up whenever any signal changes, and the fingerprint with it

_FIRST = {
    "train": 0,
    "validation": 1_000_000_000,
    "test": 2_000_000_000,
}  # so that no size moves another split's records


class Synthetic(Data):
    """Simulated records as kdkit's Data: multi-label, signal (batch, 12, length) float32, person (batch, 5).

    train, select, test: how many records each split has. A record is a pure function of (seed, id), whatever the
    sizes, and of the next three. rate: Hz. length: samples; 10 s or so are needed for each finding to show.
    difficulty: 0 (clear findings, little noise) to 1 (findings at their thresholds, much noise).
    augment: what changes training samples with the draw, such as (LeadDropout(), Mixup()).
    draws: above 1, train records are a tenth longer, and the window moves with the draw.
    scaling: "raw" is mV; "zscore" gives each lead mean 0 and variance 1. The default differs from that of recorded
    data: a z-score takes the amplitude away that LQRSV is about, and here there are no recorders' gains to even out.
    classes: names of the 2020 challenge in the order wanted for the columns; all 24 by default.

    Raises RecipeError for an option that is out of range, and for a class that is unknown, repeated or none.
    """

    task: Task = "multilabel"

    def __init__(
        self,
        *,
        train: int = 1280,
        validation: int = 256,
        test: int = 512,
        rate: float = 100,
        length: int = 1000,
        difficulty: float = 0.75,
        seed: int = 0,
        draws: int = 1,
        scaling: Scaling = "raw",
        augment: Augmentations = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        self.sizes = {"train": train, "validation": validation, "test": test}
        for name, number in {**self.sizes, "length": length, "draws": draws}.items():
            _check_count(name, number)
        if not (math.isfinite(rate) and rate > 0):
            raise RecipeError(f"rate is in Hz and above 0, but it is {rate}; try rate=100")
        if not 0 <= difficulty <= 1:
            raise RecipeError(f"difficulty goes from 0 (clear) to 1 (borderline and noisy), but it is {difficulty}")
        if scaling not in get_args(Scaling):
            raise RecipeError(f"scaling {scaling!r} is unknown; {did_you_mean(str(scaling), get_args(Scaling))}")
        check_augmentations(augment, draws)
        self.classes = _checked_classes(classes)
        self.augment = augment
        self.draws: int = draws
        self.length = length
        self.scaling = scaling
        self.simulator = Simulator(seed=seed, rate=float(rate), length=length, difficulty=float(difficulty))

    @property
    def fingerprint(self) -> str:
        """A digest of all that the samples depend on."""
        facts = (VERSION, self.simulator, self.sizes, self.draws, self.scaling, self.classes, self.augment)
        return f"synthetic-{sha256(repr(facts).encode()).hexdigest()[:16]}"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        return ("the records are simulated: scores compare methods, and say nothing about patients",)

    @cached_property
    def train(self) -> SignalSplit:
        """The records to learn from; made on first use, as are those of the other splits."""
        return self._split("train", spare=self.length // 10 if self.draws > 1 else 0, augment=self.augment)

    @cached_property
    def validation(self) -> SignalSplit:
        """The records to choose epochs and thresholds on."""
        return self._split("validation")

    @cached_property
    def test(self) -> SignalSplit:
        """The records to report on."""
        return self._split("test")

    def _split(self, name: str, spare: int = 0, augment: Augmentations = ()) -> SignalSplit:
        simulator = replace(self.simulator, length=self.length + spare)
        ids = range(_FIRST[name], _FIRST[name] + self.sizes[name])
        signals, persons, labels = [], [], []
        for id in ids:
            record = simulator.record(id)
            signals.append(self._scaled(record))
            persons.append(record.patient.vector())
            labels.append([float(each in record.patient.findings) for each in self.classes])
        return SignalSplit(
            signals=signals,
            person=torch.tensor(persons),
            labels=torch.tensor(labels),
            ids=torch.tensor(ids),
            length=self.length,
            rate=simulator.rate,
            window="random" if spare else "centre",
            seed=simulator.seed,
            augment=augment,
        )

    def _scaled(self, record: Record) -> NDArray[np.float32]:
        signal = record.signal if self.scaling == "raw" else zscore(record.signal)
        return signal.astype(np.float32)


def _check_count(name: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise RecipeError(f"{name} is a whole number of 1 or more, but it is {number!r}")


def _checked_classes(classes: Sequence[str] | None) -> tuple[str, ...]:
    known = scored_classes(2020).names
    chosen = known if classes is None else tuple(classes)
    for name in chosen:
        if name not in known:
            raise RecipeError(f"{name!r} is not a class of the 2020 challenge; {did_you_mean(name, known)}")
    if len(set(chosen)) < max(1, len(chosen)):
        raise RecipeError(f"classes are one or more different names, but they are {list(chosen)}")
    return chosen
