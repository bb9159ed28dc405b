"""The PhysioNet/CinC Challenges of 2020 and 2021 as data, from the folders of a release as they come."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit import DataError, RecipeError, Task, did_you_mean
from kdkit_ecg.datasets.folder import LeftOut, Rows, find, read_rows, read_signals
from kdkit_ecg.datasets.prepared import Prepared, prepared
from kdkit_ecg.folds import split_by_patient
from kdkit_ecg.headers import Header
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records import Record
from kdkit_ecg.signals import SignalSplit, Window
from kdkit_ecg.transforms import bandpass, resample, resample_linear, zscore

Resampling = Literal["polyphase", "linear"]
Scaling = Literal["zscore", "raw"]
Selection = Literal["separate", "test"]
Folds = Literal["patient", "record"]

# What LRH-Net's authors do where it moves numbers: folds by record, thresholds tuned on the fold that is reported. They
# make five folds; here one split of the same shares is made, and five seeds make five that overlap.
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "resampling": "linear",
        "band": None,
        "scaling": "raw",
        "crop": "random",
        "selection": "test",
        "folds": "record",
        "shares": (0.8, 0.0, 0.2),
    }
)

VERSION = 1  # of the preparation, part of the fingerprint: it goes up when the same options make other samples


# Without slots, since cached_property keeps what it found in the instance's __dict__.
@dataclass(frozen=True, eq=False)
class _Challenge:
    year: ClassVar[Year]

    folder: Path
    _: KW_ONLY
    rate: float = 257
    length: int = 4096
    band: tuple[float, float] | None = (0.5, 47.0)
    resampling: Resampling = "polyphase"
    scaling: Scaling = "zscore"
    crop: Window = "centre"
    selection: Selection = "separate"
    folds: Folds = "patient"
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    normalised_units: bool = False
    strict: bool = False
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"resampling": Resampling, "scaling": Scaling, "crop": Window, "selection": Selection, "folds": Folds}
        for option, kind in choices.items():
            given = getattr(self, option)
            if given not in get_args(kind):
                raise RecipeError(f"{option}={given!r} is not known; {did_you_mean(str(given), get_args(kind))}")
        if not (self.rate > 0 and self.length > 0 and self.draws > 0):
            raise RecipeError(f"rate, length and draws are above 0, not {self.rate}, {self.length} and {self.draws}")
        if self.band and not 0 < self.band[0] < self.band[1]:
            raise RecipeError(f"band is (low, high) in Hz with 0 < low < high, or None, not {self.band}")
        if not Path(self.folder).is_dir():
            raise DataError(f"there is no folder {self.folder}; give the one that holds the Challenge's records")

    @classmethod
    def paper(cls, folder: Path, **options: Any) -> Self:
        """Return the data as LRH-Net's authors prepare it (PAPER), with these options changed."""
        return cls(folder, **{**PAPER, **options})

    @property
    def classes(self) -> tuple[str, ...]:
        """Their abbreviations, in the order of the official scorer's table."""
        return scored_classes(self.year).names

    @property
    def task(self) -> Task:
        """A record may have several classes."""
        return "multilabel"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the results must know of the options, and once the records were found of records.csv."""
        notices = []
        if self.selection == "test":
            notices.append("thresholds and the best epoch are chosen on the test split: its scores are too good")
        if self.folds == "record":
            notices.append("folds are by record: a patient may be in several splits")
        elif not (Path(self.folder) / "records.csv").is_file():
            notices.append("there is no records.csv to name the patients: each record counts as its own patient")
        elif "_found" in vars(self):  # so that asking reads no file
            headers = self._found[0]
            strangers = sum(not self._named(header) for header in headers)
            if strangers:
                notices.append(
                    f"records.csv names no patient for {strangers} of {len(headers)} records: each of those counts as "
                    "its own patient"
                )
        return tuple(notices)

    @property
    def summary(self) -> str:
        """How many records were read, a line for each reason why others were not, and classes that a split lacks."""
        return self._read[2]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any header, signal file's size, patient or option; reads headers, but no signal."""
        options = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("folder", "strict")
        }
        digest = hashlib.blake2b(repr((VERSION, self.year, sorted(options.items()))).encode(), digest_size=16)
        for header in self._found[0]:
            sizes = [header.path.with_name(name).stat().st_size for name in header.files]
            told = header.path.read_bytes()
            digest.update(repr((header.name, self._patient(header), sizes, told)).encode())
        return digest.hexdigest()

    @property
    def train(self) -> SignalSplit:
        """What is learned from: a window of each record at random, moving with the draw."""
        return self._split(0, "random")

    @property
    def select(self) -> SignalSplit:
        """What thresholds and epochs are chosen on; the test split itself with selection="test"."""
        return self.test if self.selection == "test" else self._split(1, self.crop)

    @property
    def test(self) -> SignalSplit:
        """What is reported on."""
        return self._split(2, self.crop)

    @cached_property
    def _rows(self) -> Rows:
        return read_rows(Path(self.folder))

    @cached_property
    def _found(self) -> tuple[list[Header], LeftOut]:
        left = LeftOut(Path(self.folder))
        wanted = scored_classes(self.year)
        headers = find(left.folder, wanted, self._rows, left, normalised_units=self.normalised_units)
        if self.folds == "patient" and self._rows and headers and not any(each.name in self._rows for each in headers):
            raise DataError(
                f"{left.folder / 'records.csv'} lists {len(self._rows)} records, {next(iter(self._rows))!r} first, and "
                f"none of them is among the {len(headers)} found, {headers[0].name!r} first; its column "
                "record holds the names that stand in the headers"
            )
        return headers, left

    @cached_property
    def _read(self) -> tuple[Prepared, tuple[NDArray[np.int64], ...], str]:
        """The records, the rows of each split, and the summary."""
        headers, unfit = self._found
        left = unfit.copy()  # so that asking again, after an error, does not count the same records twice
        signals = read_signals(headers, self._shaped, left)
        summary = left.summary(len(signals))
        if self.strict and left.records:
            raise DataError(f"strict=True, and records were left out of {self.folder}:\n{summary}")
        if not signals:
            raise DataError(f"no record in {self.folder} can be learned from:\n{summary}")
        rows = split_by_patient([self._patient(header) for header in signals], self.seed, self.shares)
        records = prepared(signals, scored_classes(self.year))
        return records, rows, "\n".join([summary, *self._lacking(records, rows)])

    def _lacking(self, records: Prepared, rows: Sequence[NDArray[np.int64]]) -> Iterator[str]:
        """Say which classes a split has no positive of: what is not in train is not learned, or else not scored."""
        for name, chosen in zip(("train", "select", "test"), rows, strict=True):
            if len(chosen) and not (name == "select" and self.selection == "test"):
                none = ~records.labels[torch.from_numpy(chosen)].any(0)
                names = [each for each, lacks in zip(self.classes, none.tolist(), strict=True) if lacks]
                if names:
                    yield f"  no positive in {name}: {', '.join(names)}"

    def _named(self, header: Header) -> str | None:
        return self._rows.get(header.name, {}).get("patient") or None

    def _patient(self, header: Header) -> str:
        known = self._named(header) if self.folds == "patient" else None
        return known or f"record {header.name}"

    def _shaped(self, record: Record) -> NDArray[np.float32]:
        signal: NDArray[np.floating[Any]] = record.signal[: len(LEADS)].astype(np.float64)
        if self.band:
            signal = bandpass(signal, record.rate, *self.band)
        change = resample if self.resampling == "polyphase" else resample_linear
        signal = change(signal, record.rate, self.rate)
        return np.ascontiguousarray(zscore(signal) if self.scaling == "zscore" else signal, dtype=np.float32)

    def _split(self, place: int, window: Window) -> SignalSplit:
        records, splits, _ = self._read
        if not len(splits[place]):
            raise DataError(
                f"no record falls in the {('train', 'select', 'test')[place]} split: {len(records.ids)} records are "
                f"too few for shares of {self.shares}, or that share is 0"
            )
        return records.split(splits[place], length=self.length, window=window, seed=self.seed)


class Challenge2020(_Challenge):
    """Challenge 2020, 24 classes: twelve leads, (12, length) samples at `rate` Hz, read when a split is asked for.

    folder: any tree of .hea headers with their .mat or .dat signals. A records.csv at its root may name each record's
    patient (columns record and patient, and database where a name comes twice); else each record is its own patient.
    band: Hz, applied at the record's own rate, or None. scaling: "zscore" per lead, or "raw" mV. resampling, crop,
    selection, folds: as PAPER has them or corrected. shares: of train, select and test.
    normalised_units: also take records in standard deviations (NU). strict: raise DataError where any is left out.
    draws: how many windows of a record training sees. seed: of the splits and the windows.

    Raises DataError for a folder without records, RecipeError for options that do not exist.
    """

    year = 2020


class Challenge2021(_Challenge):
    """Challenge 2021, 26 classes; otherwise as Challenge2020."""

    year = 2021
