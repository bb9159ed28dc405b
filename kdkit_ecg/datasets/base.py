"""What data from recordings have in common: how a record becomes a sample, and which split it is in."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kdkit import Data, DataError, RecipeError, Task
from kdkit.errors import did_you_mean
from kdkit_ecg.augmentations import check_augmentations
from kdkit_ecg.datasets.exclusions import ExcludedRecords
from kdkit_ecg.datasets.samples import Prepared, prepared
from kdkit_ecg.datasets.scan import Columns
from kdkit_ecg.datasets.signal_split import Augmentations, SignalSplit, Window
from kdkit_ecg.datasets.signals import read_signals
from kdkit_ecg.datasets.splits import Selection, Splits
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.preparation import VERSION, Preparation, Resampling, Scaling
from kdkit_ecg.store import Store, Where

Folder = str | Path


# Without slots, since cached_property keeps what it found in the instance's __dict__.
@dataclass(frozen=True, eq=False)
class RecordingDataset(Data, ABC):
    """Recordings as kdkit's Data. A data set of its own says what it found and which rows make a split."""

    folder: Folder | Sequence[Folder]
    _: KW_ONLY
    rate: float = 257
    length: int = 4096
    band: tuple[float, float] | None = (0.5, 47.0)
    resampling: Resampling = "polyphase"
    scaling: Scaling = "zscore"
    crop: Window = "centre"
    selection: Selection = "separate"
    augment: Augmentations = ()
    draws: int = 10
    seed: int = 0
    strict: bool = False
    store: Where | None = "auto"

    def __post_init__(self) -> None:
        for option, kind in self._choices().items():
            given = getattr(self, option)
            if given not in get_args(kind):
                raise RecipeError(f"{option}={given!r} is not known; {did_you_mean(str(given), get_args(kind))}")
        if not (0 < self.rate < math.inf and self.length > 0 and self.draws > 0):
            told = f"{self.rate}, {self.length} and {self.draws}"
            raise RecipeError(f"rate, length and draws are finite and above 0, not {told}")
        if self.band and not 0 < self.band[0] < self.band[1]:
            raise RecipeError(f"band is (low, high) in Hz with 0 < low < high, or None, not {self.band}")
        check_augmentations(self.augment, self.draws)
        if not isinstance(self.store, str | Path | None):
            raise RecipeError(f"store is a folder, 'auto' for one in the user's cache, or None, not {self.store!r}")
        for folder in self._folders:
            if not folder.is_dir():
                raise DataError(f"there is no folder {folder}; give the one that holds the records")

    @classmethod
    def _choices(cls) -> Mapping[str, Any]:
        return {"resampling": Resampling, "scaling": Scaling, "crop": Window, "selection": Selection}

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the label columns."""
        return self._columns.names

    @property
    def task(self) -> Task:
        """A record may have several classes."""
        return "multilabel"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the results must know of the options, and once the records were found of these."""
        if self.selection == "test":
            return ("thresholds and the best epoch are chosen on the test split: its scores are too good",)
        return ()

    @property
    def summary(self) -> str:
        """How many records were read, a line for each reason why others were not, and classes that a split lacks."""
        return self._read[2]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any header, signal file's size, label, split or option; reads headers, but no signal."""
        apart = ("folder", "strict", "folds", "store")
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        options.update(asdict(self._preparation))  # rate and band as floats
        digest = hashlib.blake2b(repr((VERSION, type(self).__name__, sorted(options.items()))).encode(), digest_size=16)
        for header in self._found[0]:
            sizes = [header.path.with_name(name).stat().st_size for name in header.files]
            person = (header.name, header.age, header.sex, header.codes)
            told = (*person, header.of_signal, sizes, header.path.read_bytes())  # which may be another file by now
            digest.update(repr((told, self._place(header))).encode())
        return digest.hexdigest()

    def prepare(self, *, processes: int | None = None, verify: bool = False) -> tuple[Path, int]:
        """Prepare the records that the store lacks; return where it is, and how many these were.

        processes: how many prepare; chosen where None. verify: read all that is there, and make anew what is damaged.
        Raises RecipeError where store is None.
        """
        if self._store is None:
            raise RecipeError("with store=None there is nowhere to keep what is prepared")
        store = replace(self._store, processes=processes)
        return store.place.path, store.filled(self._found[0], verify=verify).came

    @property
    def train(self) -> SignalSplit:
        """What is learned from: a window of each record at random, moving and changing with the draw."""
        return self._split("train", window="random", augment=self.augment)

    @property
    def validation(self) -> SignalSplit:
        """What thresholds and epochs are chosen on; the test split itself with selection="test"."""
        return self._split("validation", window=self.crop)

    @property
    def test(self) -> SignalSplit:
        """What is reported on."""
        return self._split("test", window=self.crop)

    @property
    def _folders(self) -> tuple[Path, ...]:
        several = isinstance(self.folder, Sequence) and not isinstance(self.folder, str)
        return tuple(map(Path, self.folder if several else [self.folder]))  # type: ignore[arg-type]  # narrowed

    @property
    @abstractmethod
    def _columns(self) -> Columns:
        """The classes."""

    @property
    @abstractmethod
    def _found(self) -> tuple[list[Header], ExcludedRecords]:
        """The headers of the records to read, and what was left out; a cached_property."""

    @abstractmethod
    def _place(self, header: Header) -> object:
        """Return what the record's split depends on beside the options, for the fingerprint."""

    @abstractmethod
    def _splits(self, headers: Sequence[Header]) -> Splits:
        """Return the rows of each split."""

    @abstractmethod
    def _person(self, header: Header) -> str:
        """Return who the record is of, as far as that is known; else what is said of no other record."""

    def _absent(self) -> Sequence[str]:
        """Return lines for the summary on records that should be there and are not."""
        return ()

    @cached_property
    def _read(self) -> tuple[Prepared, Splits, str]:
        """The records, the rows of each split, and the summary."""
        headers, unfit = self._found
        left = unfit.copy()  # so that asking again, after an error, does not count the same records twice
        headers, signals = read_signals(headers, self._preparation, left, self._store)
        absent = self._absent()
        summary = "\n".join([left.summary(len(headers)), *absent])
        if self.strict and (left.records or absent):
            raise DataError(f"strict=True, and records are missing from {self._where}:\n{summary}")
        if not headers:
            raise DataError(f"no record in {self._where} can be learned from:\n{summary}")
        splits = self._splits(headers)
        records = prepared(headers, signals, self._columns, [self._person(header) for header in headers])
        return records, splits, "\n".join([summary, *splits.lacking(records.labels, self.classes)])

    @property
    def _where(self) -> str:
        return " and ".join(map(str, self._folders))

    @property
    def _preparation(self) -> Preparation:
        return Preparation(rate=self.rate, band=self.band, resampling=self.resampling, scaling=self.scaling)

    @property
    def _store(self) -> Store | None:
        where = self.store
        return None if where is None else Store(folders=self._folders, preparation=self._preparation, where=where)

    def _split(self, name: Literal["train", "validation", "test"], **options: Any) -> SignalSplit:
        records, splits, _ = self._read
        rows: NDArray[np.int64] = getattr(splits, name)
        if not len(rows):
            raise DataError(
                f"no record falls in the {name} split: {len(records.ids)} records are too few for these folds or "
                "shares, or its share is 0"
            )
        return records.split(rows, length=self.length, rate=self.rate, seed=self.seed, **options)
