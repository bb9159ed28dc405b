"""Predict the classes of ECG records: read, prepare as for training, run the network on windows, combine them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdkit import DataError, KdkitError, RecipeError
from kdkit.errors import first_line
from kdkit.utils.paths import user_path
from kdkit.utils.processes import usable_cores
from kdkit.utils.validation import is_number, validate_choice
from kdkit_ecg.leads import LEADS, standard_name
from kdkit_ecg.person import HIDDEN, Sex, person_vector
from kdkit_ecg.predict.model import Model, model_of_run, open_model
from kdkit_ecg.predict.prediction import Prediction
from kdkit_ecg.predict.search import Refusal, find_records, label_of
from kdkit_ecg.records.array_files import ArrayFormat, leads_axis, require_numbers
from kdkit_ecg.records.filters import flat_leads
from kdkit_ecg.records.preparation import SHORTEST
from kdkit_ecg.records.signal_lines import DEFAULT_GAIN
from kdkit_ecg.records.source import UNITS, Record, RecordSource, ordered_signal
from kdkit_ecg.utils.messages import clipped
from kdkit_ecg.utils.processes import run_in_processes

Combination = Literal["mean", "max", "centre"]

BATCH = 16  # windows that the network receives at a time; a day at 257 Hz has 5,400 of 4,096 samples
CHUNK = 16  # records that a process receives at a time, at most: on a busy machine, each message waits for its turn
RECORDS_PER_PROCESS = 100  # that justify starting a process: its imports take about three seconds


class Predictor:
    """Predicts the classes of ECG records with any rate and order of leads. Not a medical device.

    path: a file that `kdkit export` wrote: .onnx (also int8), which needs onnxruntime but not torch, or .pt2. combine:
    how to combine the windows of a longer record: "mean" or "max" of their probabilities, or "centre" for the middle
    one alone, as in the evaluation of a run.

    task: "multilabel", "multiclass" or "regression". classes, thresholds: see `Prediction`. leads, rate, seconds: of
    the window that the network takes, rate in Hz. metadata: all metadata of the file.

    Raises DataError if the file cannot be read or was not exported from ECGs, KdkitError without onnxruntime.
    """

    def __init__(self, path: str | Path, *, combine: Combination = "mean") -> None:
        self._set(open_model(user_path(path)), combine)
        self._path: Path | None = user_path(path)

    @classmethod
    def from_run(
        cls, recipe: Any, weights: str | Path, *, net: str | None = None, combine: Combination = "mean"
    ) -> "Predictor":
        """Return the predictor of a net of a recipe with the weights of a run, without an export.

        Arguments as for `kdkit.export_net`. The net predicts its validation split first, to choose thresholds. Records
        are predicted in this process alone.
        """
        predictor = cls.__new__(cls)
        predictor._set(model_of_run(recipe, user_path(weights), net), combine)
        predictor._path = None
        return predictor

    def _set(self, model: Model, combine: Combination) -> None:
        validate_choice("combine", combine, Combination)
        if combine == "max" and model.task != "multilabel":
            unsuited = "classes that exclude each other" if model.task == "multiclass" else "numbers of a regression"
            raise KdkitError(f'combine="max" (--windows max) does not suit {unsuited}; use "mean" or "centre"')
        self._model, self.combine = model, combine
        self.metadata = model.metadata
        self.task, self.classes, self.thresholds = model.task, model.classes, model.thresholds
        self.leads, self.rate = model.preparation.leads, model.preparation.rate
        self.seconds = model.length / self.rate

    def predict(self, record: str | Path | RecordSource | Record, *, arrays: ArrayFormat | None = None) -> Prediction:
        """Return the prediction of one record: the path of a file with a single record, or a record that was read.

        The suffix of a WFDB record may be left out. arrays: describes files of numbers. Raises DataError with the
        reason if it cannot be predicted.
        """
        if isinstance(record, Record):
            return self._predict(record, str(record.path), derived=self._derived(record.leads), notes=())
        if isinstance(record, RecordSource):
            return self._predict_source(record)
        sources = list(find_records([user_path(record)], arrays))  # of a folder, all records in it
        if len(sources) != 1:
            raise DataError(f"expected one record in {record}, got {len(sources)}; use predict_all for several")
        if isinstance(sources[0], Refusal):
            raise DataError(f"{sources[0].record}: {sources[0].reason}")
        return self._predict_source(sources[0])

    def predict_array(
        self,
        signal: ArrayLike,
        *,
        rate: float,
        leads: Sequence[str],
        unit: str | None = None,
        age: float | None = None,
        sex: Sex | None = None,
    ) -> Prediction:
        """Return the prediction of a signal, (leads, time) or (time, leads), in the order of the names in `leads`.

        A signal of one lead may be (time,). rate in Hz. unit: "mV", "uV", "nV", "V", or "NU" for standard deviations;
        may be None, for mV, if the network scales each lead itself. NaN is interpolated. age in years; age and sex are
        None if unknown. Raises DataError for an array that cannot be predicted, RecipeError for wrong options.
        """
        if isinstance(leads, str) or not len(leads):
            raise RecipeError(f"leads must be the names of the leads of the signal, such as ('I', 'II'), got {leads!r}")
        described = self.array_format(rate=rate, leads=leads, unit=unit)
        if age is not None and not (is_number(age) and 0 <= age <= 120):
            raise RecipeError(f"age must be a number of years from 0 to 120, or None if it is unknown, got {age!r}")
        if sex is not None:
            validate_choice("sex", sex, Sex)
        array = np.asarray(signal)
        require_numbers(array.dtype)
        values, unit = array.astype(np.float64), described.unit.lower()
        if values.ndim == len(described.leads) == 1:
            values = values[None]
        if values.ndim != 2:
            raise DataError(f"expected a signal of two axes, leads and time, got the shape {values.shape}")
        values = values if leads_axis(values.shape, described.leads) == 0 else values.T
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that are too large are refused later
            # The twelve leads first, as for files: limb leads are then derived by the same code.
            names, samples, invalid = ordered_signal(values * UNITS[unit], described.leads, derive=unit != "nu")
        record = Record(
            name="array",
            path=Path("array"),
            signal=samples,
            leads=names,
            rate=described.rate,
            age=age,
            sex=sex,
            codes=(),
            normalised=unit == "nu",
            invalid=invalid,
        )
        return self._predict(record, "array", derived=self._derived(described.leads), notes=())

    def array_format(
        self, *, rate: float, leads: Sequence[str] = (), unit: str | None = None, signals: str = "tracings"
    ) -> ArrayFormat:
        """Return the description of files of numbers for `predict` and `predict_all`; see `predict_array`.

        signals: the name of the dataset of HDF5 files.
        """
        if unit is None and self._model.preparation.scaling == "raw":
            raise RecipeError(
                'the network takes signals in mV; give the unit of the numbers, such as unit="mV" (--unit mV)'
            )
        return ArrayFormat(rate=rate, unit=unit or "mV", leads=tuple(leads), signals=signals)

    def predict_all(
        self,
        records: str | Path | Iterable[str | Path],
        *,
        arrays: ArrayFormat | None = None,
        processes: int | None = None,
    ) -> Iterator[Prediction]:
        """Yield a prediction for each record of files and folders, in their order, even for refused ones.

        Folders are searched. arrays: describes files of numbers; without it, they are refused, and the CSV files in
        folders are left out. processes: the number of processes that read and predict; if None, it depends on the
        numbers of records and usable cores.
        """
        paths = [records] if isinstance(records, str | Path) else records  # a string is one path, not its characters
        sources = list(find_records(list(map(user_path, paths)), arrays))
        if processes is None:
            processes = min(usable_cores(), max(1, len(sources) // RECORDS_PER_PROCESS))
        if self._path is None or processes <= 1:
            yield from map(self._predict_or_refuse, sources)
            return
        size = max(1, min(CHUNK, len(sources) // (4 * processes)))
        work = [(start, tuple(sources[start : start + size])) for start in range(0, len(sources), size)]
        finished: dict[int, list[Prediction]] = {}  # by the position of their first record
        position = 0
        # Chunks finish in any order, and are yielded in the original order.
        predict_chunk = partial(_predict_chunk, self._path, self.combine, self.metadata)
        for (start, _), predictions in run_in_processes(predict_chunk, work, processes):
            finished[start] = predictions
            while position in finished:
                done = finished.pop(position)
                yield from done
                position += len(done)

    def _predict_or_refuse(self, source: RecordSource | Refusal) -> Prediction:
        if isinstance(source, Refusal):
            return Prediction(record=source.record, reason=source.reason)
        try:
            return self._predict_source(source)
        except (KdkitError, OSError, MemoryError) as error:
            return Prediction(record=label_of(source), reason=first_line(error))

    def _predict_source(self, source: RecordSource) -> Prediction:
        absent = source.absent_leads(self.leads)
        if absent:  # before the signal is read
            advice = "; if one has another name, rename it, or pass the signal and its leads to predict_array"
            advice = "" if set(source.leads) <= set(LEADS) else advice
            raise DataError(
                f"it lacks {', '.join(absent)}, not derivable from its leads {clipped(', '.join(source.leads))}{advice}"
            )
        notes = []
        if source.default_gains:
            notes.append(f"{DEFAULT_GAIN:g} steps per mV are assumed, because the header has no gain")
        if source.counted:
            notes.append("the number of samples is that of the file")
        derived = self._derived(source.leads)
        return self._predict(source.read(), label_of(source), derived=derived, notes=tuple(notes))

    def _derived(self, names: Sequence[str]) -> tuple[str, ...]:
        present = set(map(standard_name, names))
        return tuple(lead for lead in self.leads if lead not in present)

    def _predict(self, record: Record, label: str, *, derived: tuple[str, ...], notes: tuple[str, ...]) -> Prediction:
        model = self._model
        if record.normalised:
            # Leads that were each scaled by their own deviation are no longer sums of each other.
            if derived or model.preparation.scaling == "raw":
                raise DataError(f"{record.path} is in standard deviations (NU), but the network takes signals in mV")
            notes = (*notes, "the signal is in standard deviations, not in mV")
        try:
            signal = model.preparation.transform(record)
        except DataError as error:
            raise DataError(f"{record.path} cannot be prepared: {first_line(error)}") from error
        if signal.shape[1] < SHORTEST * model.length:
            seconds = record.signal.shape[1] / record.rate
            raise DataError(
                f"{record.path} has {seconds:.3g} s; expected at least {SHORTEST:.0%} of {self.seconds:.3g} s"
            )
        flat = list(compress(self.leads, flat_leads(signal)))
        if len(flat) == len(self.leads):
            raise DataError(f"{record.path} has no signal: all leads that the network takes are flat")
        if flat:
            notes = (*notes, f"flat: {', '.join(flat)}")
        shares = zip(record.leads, record.invalid, strict=False)  # none for a record that a program made
        used = [(lead, share) for lead, share in shares if lead in self.leads or derived]
        interpolated = [f"{lead} {share:.2g}" for lead, share in used if 0 < share < 1]  # if it is 1, the lead is flat
        if interpolated:
            notes = (*notes, f"share of invalid samples, which were interpolated: {', '.join(interpolated)}")
        persons = (("age", record.age, model.features[0]), ("sex", record.sex, model.features[2]))
        unknown = [name for name, value, feature in persons if value is None and feature != HIDDEN]
        if unknown and model.person:
            notes = (*notes, f"{' and '.join(unknown)} unknown")
        starts = starts_of(signal.shape[1], model.length, self.combine)
        person = person_vector(record.age, record.sex)
        person[[feature == HIDDEN for feature in model.features]] = 0  # as in training
        outputs = self._run(signal, starts, person)
        windows, predicted = outputs, dict[str, Any](values=outputs.mean(axis=0))
        if model.task != "regression":
            windows = model.probabilities(outputs)
            together = windows.max(axis=0) if self.combine == "max" else windows.mean(axis=0)
            predicted = {"probabilities": together, "decisions": self._decisions(together, outputs)}
        return Prediction(
            **predicted,
            record=label,
            classes=model.classes,
            thresholds=model.thresholds,
            windows=windows,
            combine=self.combine,
            starts=tuple(start / self.rate for start in starts),
            seconds=record.signal.shape[1] / record.rate,
            rate=record.rate,
            derived=derived,
            notes=notes,
        )

    def _run(
        self, signal: NDArray[np.float32], starts: Sequence[int], person: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return the outputs of the windows, (windows, classes)."""
        model, outputs = self._model, []
        for first in range(0, len(starts), BATCH):
            windows = cut(signal, starts[first : first + BATCH], model.length)
            arrays = {model.signal: windows, model.person: np.repeat(person[None], len(windows), axis=0)}
            # In the order of the file, because some runtimes take inputs by position.
            try:
                outputs.append(model.run({name: arrays[name] for name in model.inputs}))
            except Exception as error:  # runtimes raise any kind of error
                raise DataError(f"the network fails for {windows.shape}: {first_line(error)}") from error
        values = np.concatenate(outputs).astype(np.float64)
        if values.ndim == 1:
            values = values[:, None]  # a regression of one number
        if values.shape != (len(starts), len(model.classes)) or not np.isfinite(values).all():
            raise DataError(f"the network does not return finite outputs for {', '.join(model.classes)}")
        return values

    def _decisions(self, probabilities: NDArray[np.float64], outputs: NDArray[np.float64]) -> NDArray[np.bool_]:
        decisions: NDArray[np.bool_]
        if self._model.task == "multiclass":
            decisions = np.arange(len(probabilities)) == probabilities.argmax()
        elif len(outputs) == 1:
            # The logit itself is compared: it may equal the threshold, which is the logit of a sample.
            decisions = outputs[0] >= np.array(self._model.logits)
        else:
            decisions = probabilities >= np.array(self.thresholds)
        return decisions


def starts_of(time: int, length: int, combine: Combination) -> list[int]:
    """Return the first sample of each window of `length` samples of a signal.

    A longer signal has the fewest windows that cover it, evenly spaced, so they overlap. A shorter signal is padded on
    both sides as in training, so its window starts before it. combine: "centre" for the middle alone.
    """
    spare = time - length
    if spare <= 0:
        return [-(-spare // 2)]  # for an odd number, the smaller half comes before
    if combine == "centre":
        return [spare // 2]
    count = math.ceil(time / length)
    return [round(number * spare / (count - 1)) for number in range(count)]


def cut(signal: NDArray[np.float32], starts: Sequence[int], length: int) -> NDArray[np.float32]:
    """Return windows of a signal (leads, time), (windows, leads, length); samples outside of it are 0."""
    windows = np.zeros((len(starts), signal.shape[0], length), np.float32)
    for window, start in zip(windows, starts, strict=True):
        inside = signal[:, max(start, 0) : start + length]
        window[:, max(-start, 0) : max(-start, 0) + inside.shape[1]] = inside
    return windows


# A worker process predicts many chunks, and opens the network once.
_cached_predictor = lru_cache(maxsize=1)(lambda path, combine: Predictor(path, combine=combine))


def _predict_chunk(
    path: Path, combine: Combination, metadata: Mapping[str, Any], work: tuple[int, tuple[RecordSource | Refusal, ...]]
) -> list[Prediction]:
    """Predict records in a worker process. metadata: of the file when the caller opened it."""
    predictor = _cached_predictor(path, combine)
    if predictor.metadata != metadata:  # its thresholds would differ from those that the caller shows
        raise DataError(f"{path} was replaced while it was in use; run the same command again")
    return [predictor._predict_or_refuse(source) for source in work[1]]
