"""The samples of a record as the doctor examines and compares them, in the steps of its file."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.records.wfdb_record import Header, invalid_values, read_steps

Samples = NDArray[Any]  # of integers, or of float64


class LeadSamples(NamedTuple):
    """The samples of all leads, (leads, time): in converter steps for WFDB, otherwise in mV.

    invalid: whether a sample is invalid, (leads, time). gains in steps per mV, baselines in steps, both (leads, 1).
    """

    samples: Samples
    invalid: NDArray[np.bool_]
    gains: NDArray[np.float64]
    baselines: NDArray[np.float64]

    @classmethod
    def read(cls, source: RecordSource) -> Self:
        """Read the signal of a record. Raises DataError or OSError if it cannot be read."""
        gains, baselines = np.ones((len(source.leads), 1)), np.zeros((len(source.leads), 1))
        if isinstance(source, Header):
            steps = read_steps(source)
            gains[:, 0], baselines[:, 0] = source.gains, source.baselines
            return cls(steps, steps == invalid_values(source), gains, baselines)
        values = source.read_leads()
        if (np.abs(values) > np.finfo(np.float32).max).any():  # the loaders read float32
            raise DataError(f"the signal of {source.path} has samples that are infinite, or too large for a number")
        return cls(np.nan_to_num(values), np.isnan(values), gains, baselines)

    def ordered(self, order: NDArray[np.intp]) -> Self:
        """Return the leads in this order."""
        return type(self)(self.samples[order], self.invalid[order], self.gains[order], self.baselines[order])

    def in_mv(self) -> NDArray[np.float32]:
        """Return the samples in mV, (leads, time) float32."""
        with np.errstate(over="ignore", invalid="ignore"):  # a tiny gain, which the doctor reports
            return np.asarray((self.samples - self.baselines) / self.gains, dtype=np.float32)
