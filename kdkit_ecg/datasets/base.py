"""Base class of the data sets made of recordings: options, splits, fingerprint and summary."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_origin

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import Data, DataError, RecipeError, Task
from kdkit.utils.paths import user_path
from kdkit.utils.validation import is_number, validate_above_zero, validate_choice, validate_counts, validate_switches
from kdkit_ecg.augmentations import check_augmentations
from kdkit_ecg.datasets.scan import Selection, assumptions
from kdkit_ecg.datasets.signal_split import Augmentations, SignalSplit, Window
from kdkit_ecg.datasets.signals import implausible_amplitudes, read_signals
from kdkit_ecg.datasets.splits import Splits, ValidationSplit
from kdkit_ecg.labels import LabelEncoder
from kdkit_ecg.leads import LEADS
from kdkit_ecg.person import person_vector
from kdkit_ecg.records.description import describe_preparation
from kdkit_ecg.records.filters import BAND
from kdkit_ecg.records.preparation import VERSION, Preparation, Resampling, Scaling
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.store import SignalStore, StoreLocation

Folder = str | Path
_SHORTEST_WINDOW = 0.3  # s


class _Loaded(NamedTuple):
    """All records of a data set, the rows of each split, and the summary. contents: a hash of each record's samples."""

    records: SignalSplit
    splits: Splits
    summary: str
    contents: list[bytes]


# No slots: cached_property stores its value in the __dict__ of the instance.
@dataclass(frozen=True, eq=False)
class RecordingDataset(Data, ABC):
    """Recordings as data for kdkit. A subclass finds the records and assigns them to splits."""

    # Options that do not change samples. Folds count through the fold of each record, see _split_key.
    _without_effect: ClassVar[tuple[str, ...]] = ("folder", "strict", "folds", "store")

    folder: Folder | Sequence[Folder]
    _: KW_ONLY
    rate: float = 257
    length: int = 4096
    band: tuple[float, float] | None = BAND
    resampling: Resampling = "polyphase"
    scaling: Scaling = "zscore"
    crop: Window = "centre"
    validation_split: ValidationSplit = "separate"
    augment: Augmentations = ()
    draws: int = 10
    seed: int = 0
    strict: bool = False
    store: StoreLocation | None = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal:
                validate_choice(field.name, value, field.type)
            elif field.type is bool:
                validate_switches(**{field.name: value})
        validate_above_zero("rate", self.rate)
        validate_counts(self, "length", "draws")
        validate_counts(self, "seed", least=0)
        band: Any = self.band
        is_pair = isinstance(band, tuple | list) and len(band) == 2 and all(map(is_number, band))
        if band is not None and not (is_pair and 0 < band[0] < band[1]):
            raise RecipeError(f"band must be (low, high) in Hz with 0 < low < high, or None, got {band!r}")
        check_augmentations(self.augment, self.draws)
        if not isinstance(self.store, str | Path | None):
            raise RecipeError(f"store must be a folder, 'auto' for the user's cache, or None, got {self.store!r}")
        if not self._folders:
            raise RecipeError("folder must be a path or several of them, got none")
        # Folders are checked now, their content only when a split is used.
        for folder in self._folders:
            if not folder.is_dir():
                raise DataError(f"the folder {folder} does not exist; expected one that contains the records")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the label columns."""
        return self._label_encoder.names

    @property
    def leads(self) -> tuple[str, ...]:
        """Names of the leads, in the order of the channels."""
        return LEADS

    @property
    def task(self) -> Task:
        """A record may have several classes."""
        return "multilabel"

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings to print with the results: about the options, and about the records once they have been found."""
        notices = []
        if self.validation_split == "test":
            notices.append(
                "thresholds and the best epoch are chosen on the test split, so its metrics are too optimistic"
            )
        if self.length < _SHORTEST_WINDOW * self.rate:
            notices.append(
                f"a sample has length={self.length} samples, {self.length / self.rate:.2g} s at {self.rate:g} Hz, "
                "which is shorter than a heartbeat"
            )
        if "_selected" in vars(self):  # notices must not read any file
            notices += self._record_notices()
            normalised = [source.normalised for source in self._selected.sources]
            scaled, count = sum(normalised), len(normalised)
            if self.scaling == "raw" and 0 < scaled < count:
                notices.append(
                    f"{scaled} of {count} records are in standard deviations and the others in mV, which scaling='raw' "
                    "does not change; use scaling='zscore'"
                )
        return tuple(notices)

    @property
    def summary(self) -> str:
        """How many records were read, how many were excluded for each reason, and classes missing from a split."""
        return self._loaded.summary

    @property
    def preparation(self) -> dict[str, Any]:
        """How a record becomes the inputs of a network, for exported networks; docs/export.md defines the steps."""
        return describe_preparation(self._preparation, length=self.length, window=self.crop, hidden=self._hidden)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every header, signal file size, label, split and option. Reads headers, but no signals."""
        names = [field.name for field in fields(self) if field.name not in self._without_effect]
        options = {name: getattr(self, name) for name in names}
        options.update(asdict(self._preparation))  # rate and band as floats
        digest = hashlib.blake2b(repr((VERSION, type(self).__name__, sorted(options.items()))).encode(), digest_size=16)
        for source in self._selected.sources:
            # Sizes, not times of change: a copy of the folder on another machine has the same fingerprint.
            sizes = [source.path.with_name(name).stat().st_size for name in source.files]
            person = (source.name, source.age, source.sex, source.codes)
            # The bytes count in addition to the parsed fields, because the file may have been replaced since it was
            # read.
            record = (*person, source.signal_fields, sizes, source.description())
            digest.update(repr((record, self._split_key(source))).encode())
        return digest.hexdigest()

    @cached_property
    def train_digest(self) -> str:
        """A digest of the samples in the training records' files, which may change under the same fingerprint.

        The header of a WFDB record has checksums of its samples; other files of the same size have none.
        """
        digest = hashlib.blake2b(digest_size=16)
        for row in self._loaded.splits.train.tolist():
            digest.update(self._loaded.contents[row])
        return digest.hexdigest()

    def prepare(self, *, processes: int | None = None, verify: bool = False) -> tuple[Path, int]:
        """Prepare the records that are missing from the store; return the folder of the store and their number.

        processes: the number of processes that prepare records; chosen automatically if None. verify: read the whole
        store, and prepare damaged records again. Raises RecipeError if `store` is None.
        """
        if self._store is None:
            raise RecipeError("with store=None, prepared records cannot be stored; use store='auto' or a folder")
        store = replace(self._store, processes=processes)
        return store.folder.path, store.prepare(self._selected.sources, verify=verify).prepared

    @cached_property
    def train(self) -> SignalSplit:
        """The training split: random windows of the records, augmented, different in each draw."""
        return self._split("train", window="random", augment=self.augment)

    @cached_property
    def validation(self) -> SignalSplit:
        """The split on which thresholds and epochs are chosen; equal to `test` if validation_split="test"."""
        return self._split("validation")

    @cached_property
    def test(self) -> SignalSplit:
        """The split on which results are reported."""
        return self._split("test")

    @property
    def _hidden(self) -> Sequence[str]:
        """Of "age" and "sex", those that networks do not get."""
        return ()

    @property
    def _folders(self) -> tuple[Path, ...]:
        several = isinstance(self.folder, Sequence) and not isinstance(self.folder, str)
        return tuple(map(user_path, self.folder if several else [self.folder]))  # type: ignore[arg-type]  # narrowed above

    @property
    @abstractmethod
    def _label_encoder(self) -> LabelEncoder:
        """The classes, and the label row of a record."""

    @property
    @abstractmethod
    def _selected(self) -> Selection:
        """The records to read, and the excluded ones; a cached_property."""

    @abstractmethod
    def _split_key(self, source: RecordSource) -> object:
        """Return the data that decides the split of a record in addition to the options, for the fingerprint."""

    @abstractmethod
    def _split_rows(self, sources: Sequence[RecordSource]) -> Splits:
        """Return the rows of each split."""

    @abstractmethod
    def _person(self, source: RecordSource) -> str:
        """Return an identifier of the person; unique to this record if the person is unknown."""

    def _record_notices(self) -> list[str]:
        """Return notices about the records that have been found."""
        sources = self._selected.sources
        unknown = sum(not source.patient for source in sources)
        if not unknown:
            return []
        number = "every record" if unknown == len(sources) else f"{unknown} of {len(sources)} records"
        return [f"the patient of {number} is unknown; each counts as a separate patient"]

    def _missing_records(self) -> Sequence[str]:
        """Return lines for the summary about expected records that were not found."""
        return ()

    @cached_property
    def _loaded(self) -> _Loaded:
        sources, excluded_before = self._selected
        excluded = excluded_before.copy()  # a second access after an error must not count a record twice
        sources, signals, contents = read_signals(sources, self._preparation, excluded, self._store)
        missing = self._missing_records()
        assumed = assumptions(sources, self.leads, seconds=self.length / self.rate)
        summary = "\n".join([excluded.summary(len(sources)), *assumed, *missing])
        if self.strict and (excluded.records or excluded.unread or excluded.not_listed or missing):
            raise DataError(f"strict=True, but records are missing from {self._folder_names}:\n{summary}")
        if not sources:
            raise DataError(f"no record in {self._folder_names} can be used:\n{summary}")
        # After reading, because records with unreadable or duplicate signals are no longer in the list.
        splits = self._split_rows(sources)
        names = [source.name for source in sources]
        # Consecutive numbers for the persons; only equality matters.
        unique, groups = np.unique([self._person(source) for source in sources], return_inverse=True)
        records = SignalSplit(
            signals=signals,
            person=torch.from_numpy(np.stack([person_vector(source.age, source.sex) for source in sources])),
            labels=torch.from_numpy(np.stack([self._label_encoder.row(source.codes) for source in sources])),
            ids=record_ids(names),
            length=self.length,
            rate=self.rate,
            window=self.crop,
            seed=self.seed,
            groups=None if len(unique) == len(sources) else torch.from_numpy(groups),
            in_mv=self.scaling == "raw",
            leads=self.leads,
            names=names,
        )
        if self.task != "regression":
            summary = "\n".join([summary, *splits.missing_classes(records.labels, self.classes)])
        if self.scaling == "raw":
            summary = "\n".join([summary, *implausible_amplitudes(sources, signals, round(60 * self.rate))])
        return _Loaded(records, splits, summary, contents)

    @property
    def _folder_names(self) -> str:
        return " and ".join(map(str, self._folders))

    @property
    def _preparation(self) -> Preparation:
        return Preparation(
            rate=self.rate, band=self.band, resampling=self.resampling, scaling=self.scaling, leads=self.leads
        )

    @property
    def _store(self) -> SignalStore | None:
        if self.store is None:
            return None
        return SignalStore(folders=self._folders, preparation=self._preparation, location=self.store)

    def _split(self, name: Literal["train", "validation", "test"], **options: Any) -> SignalSplit:
        records = self._loaded.records
        rows: NDArray[np.int64] = getattr(self._loaded.splits, name)
        if not len(rows):
            raise DataError(
                f"the {name} split has no record: {len(records)} records are too few for these folds or shares, or "
                "its share is 0"
            )
        return records.select(rows, **options)


def record_ids(names: Sequence[str]) -> Tensor:
    """Return (records,) int64 ids. Each depends on the name alone, so adding or removing records does not change it."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    ids = [int.from_bytes(digest, "big") >> 1 for digest in digests]  # 63 bits, so that int64 is not negative
    if len(set(ids)) < len(ids):
        raise DataError("two record names have the same id; rename one of the records")
    return torch.tensor(ids)
