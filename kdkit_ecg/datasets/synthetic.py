"""A data set without a download: simulated twelve-lead ECGs that show the 24 classes of the 2020 Challenge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit import Data, RecipeError, Task
from kdkit.errors import did_you_mean
from kdkit.utils.processes import usable_cores
from kdkit.utils.validation import validate_above_zero, validate_choice, validate_count, validate_share
from kdkit_ecg.augmentations import check_augmentations
from kdkit_ecg.datasets.signal_split import Augmentations, SignalSplit
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.leads import LEADS
from kdkit_ecg.person import person_vector
from kdkit_ecg.records.description import describe_preparation
from kdkit_ecg.records.filters import zscore
from kdkit_ecg.records.preparation import Preparation, Scaling
from kdkit_ecg.simulator import Simulator
from kdkit_ecg.simulator.patients import Patient
from kdkit_ecg.simulator.simulator import Chunk, simulate
from kdkit_ecg.utils.processes import run_in_processes

CHUNK = 64  # records that a process simulates at a time
RECORDS_PER_PROCESS = 128  # that justify starting a process: its imports take about as long as 150 records
VERSION = 1  # of the simulator; increase it if any signal changes, because the fingerprint depends on it

# Far apart, so that the size of one split never changes the records of another.
_FIRST_ID = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}

_Record = tuple[NDArray[np.float32], Patient]


class Synthetic(Data):
    """Simulated records as data for kdkit: multi-label, signal (batch, 12, length) float32, person (batch, 5).

    train, validation, test: number of records in each split. A record is a pure function of (seed, id) and of the next
    three options, whatever the sizes. rate: Hz. length: samples; about 10 s are needed for all findings to appear.
    difficulty: 0 (clear findings, little noise) to 1 (findings at their thresholds, much noise).
    augment: augmentations of training samples in each draw, such as (LeadDropout(), Mixup()).
    draws: if above 1, training records are a tenth longer, and the window moves in each draw.
    scaling: "raw" is mV; "zscore" scales each lead to mean 0 and variance 1. The default differs from that of recorded
    data: a z-score removes the amplitude that defines LQRSV, and simulated signals have no recorder gains to equalise.
    classes: names of classes of the 2020 Challenge, in the order of the label columns; all 24 by default.

    Raises RecipeError for an option out of range, and for classes that are unknown, repeated or missing.
    """

    task: Task = "multilabel"
    leads = LEADS

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
        for name, count in {**self.sizes, "length": length, "draws": draws}.items():
            validate_count(name, count)
        validate_count("seed", seed, least=0)
        validate_above_zero("rate", rate)
        validate_share("difficulty", difficulty)
        validate_choice("scaling", scaling, Scaling)
        check_augmentations(augment, draws)
        scored = scored_classes(2020).names
        self.classes = scored if classes is None else tuple(classes)
        for name in self.classes:
            if name not in scored:
                raise RecipeError(f"{name!r} is not a class of the 2020 Challenge; {did_you_mean(name, scored)}")
        if len(set(self.classes)) < max(1, len(self.classes)):
            raise RecipeError(f"classes must be one or more different names, got {list(self.classes)}")
        self.augment = augment
        self.draws: int = draws
        self.length = length
        self.scaling = scaling
        self.simulator = Simulator(seed=seed, rate=float(rate), length=length, difficulty=float(difficulty))
        self._splits: dict[str, SignalSplit] = {}  # those that are simulated

    @property
    def fingerprint(self) -> str:
        """A digest of everything that the samples depend on."""
        settings = (VERSION, self.simulator, self.sizes, self.draws, self.scaling, self.classes, self.augment)
        return f"synthetic-{sha256(repr(settings).encode()).hexdigest()[:16]}"

    @property
    def preparation(self) -> dict[str, Any]:
        """How a record becomes the inputs of a network, for exported networks; docs/export.md defines the steps."""
        preparation = Preparation(rate=self.simulator.rate, band=None, resampling="polyphase", scaling=self.scaling)
        return describe_preparation(preparation, length=self.length, window="centre")

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings to print with the results."""
        return ("the records are simulated, so metrics compare methods and are no evidence about patients",)

    @cached_property
    def train(self) -> SignalSplit:
        """The training split. Its records are simulated on first use, like those of the other splits."""
        # Whoever trains needs the other splits soon, and to start processes for each of them would take longer.
        return self._split("train", "validation", "test")

    @cached_property
    def validation(self) -> SignalSplit:
        """The split on which epochs and thresholds are chosen."""
        return self._split("validation")

    @cached_property
    def test(self) -> SignalSplit:
        """The split on which results are reported."""
        return self._split("test")

    def _split(self, name: str, *others: str) -> SignalSplit:
        """Return a split, and simulate it together with others, unless they are simulated already."""
        missing = [split for split in (name, *others) if split not in self._splits]
        splits = self._splits = self._splits | self._simulate(missing)
        return splits[name]

    def _simulate(self, names: Sequence[str]) -> dict[str, SignalSplit]:
        """Simulate the records of splits."""
        records: dict[str, dict[int, _Record]] = {name: {} for name in names}  # by split and id
        chunks = []
        for name in names:
            ids, simulator = self._ids(name), replace(self.simulator, length=self.length + self._spare(name))
            chunks += [Chunk(simulator, ids[start : start + CHUNK], name) for start in range(0, len(ids), CHUNK)]
        # torch's number of threads is this process's share of the cores: small if it is one of several.
        count = sum(len(chunk.ids) for chunk in chunks)
        processes = min(usable_cores(), torch.get_num_threads(), count // RECORDS_PER_PROCESS)
        if processes > 1:
            results = run_in_processes(simulate, chunks, processes)
        else:
            results = ((chunk, simulate(chunk)) for chunk in chunks)
        for chunk, simulated in results:  # in any order
            for id, (signal, patient) in zip(chunk.ids, simulated, strict=True):
                scaled = signal if self.scaling == "raw" else zscore(signal)
                records[chunk.split][id] = scaled.astype(np.float32), patient
        return {name: self._as_split(name, records[name]) for name in names}

    def _as_split(self, name: str, records: Mapping[int, _Record]) -> SignalSplit:
        ids = self._ids(name)
        patients = [records[id][1] for id in ids]
        return SignalSplit(
            signals=[records[id][0] for id in ids],
            person=torch.from_numpy(np.stack([person_vector(patient.age, patient.sex) for patient in patients])),
            labels=torch.tensor([[float(label in patient.findings) for label in self.classes] for patient in patients]),
            ids=torch.tensor(ids),
            length=self.length,
            rate=self.simulator.rate,
            window="random" if self._spare(name) else "centre",
            in_mv=self.scaling == "raw",
            seed=self.simulator.seed,
            augment=self.augment if name == "train" else (),
        )

    def _ids(self, name: str) -> range:
        return range(_FIRST_ID[name], _FIRST_ID[name] + self.sizes[name])

    def _spare(self, name: str) -> int:
        """Return how many samples a record is longer than the window."""
        return self.length // 10 if name == "train" and self.draws > 1 else 0
