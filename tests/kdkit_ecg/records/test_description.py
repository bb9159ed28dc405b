"""A program that follows the description of a preparation computes the inputs that a network was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import butter, resample_poly, sosfiltfilt

from kdkit_ecg import Leads, Synthetic
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.description import describe_preparation
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.source import Record


def follow(description, leads, rate):
    """Return the signal that docs/export.md describes. leads: the signal of each lead by name, in mV, at this rate."""
    signal = np.zeros((0, 0))
    for step in description["steps"]:
        match step["step"]:
            case "leads":
                signal = np.stack([leads[name] for name in step["names"]])
            case "interpolate_invalid":
                assert np.isfinite(signal).all()
            case "bandpass":
                edges = step["low"], step["high"]
                sections = butter(step["order"], edges, "bandpass", fs=rate, output="sos")
                padding = min(step["padding_samples"], signal.shape[1] - 1)
                signal = sosfiltfilt(sections, signal, axis=1, padtype=step["padding"], padlen=padding)
            case "resample":
                assert step["method"] == "polyphase"
                up, down = int(step["rate"]), int(rate)
                assert step["subtracted"] == "line from first to last sample"
                line = np.linspace(signal[:, 0], signal[:, -1], signal.shape[1], axis=1)
                rest = resample_poly(signal - line, up, down, axis=1, window=(step["window"], step["beta"]))
                slopes = (line[:, -1:] - line[:, :1]) / (signal.shape[1] - 1)
                signal = rest + line[:, :1] + slopes * np.arange(rest.shape[1]) * down / up
            case "zscore":
                deviation = signal.std(1, keepdims=True)
                scaled = (signal - signal.mean(1, keepdims=True)) / np.maximum(deviation, step["flat_below"])
                signal = np.where(deviation < step["flat_below"], 0, scaled)
            case "window":
                missing = step["length"] - signal.shape[1]
                if missing > 0:
                    widths = missing // 2, missing - missing // 2
                    signal = np.pad(signal, ((0, 0), widths), constant_values=step["padding"])
                else:
                    signal = signal[:, -missing // 2 :][:, : step["length"]]
            case other:
                raise AssertionError(other)
    return signal.astype(np.float32)


@pytest.mark.parametrize("seconds", [4, 9])
@pytest.mark.parametrize("scaling", ["zscore", "raw"])
@pytest.mark.parametrize("band", [(0.5, 47.0), None])
def test_a_program_that_follows_the_steps_computes_what_the_data_set_does(seconds, scaling, band):
    random = np.random.default_rng(0)
    signal = random.normal(size=(12, 500 * seconds)).cumsum(1).astype(np.float32) / 50
    signal[3] = 0.25  # a flat lead
    record = Record(
        name="a", path=Path("a.hea"), signal=signal, leads=LEADS, rate=500.0, age=None, sex=None, codes=(),
        normalised=False,
    )  # fmt: skip
    preparation = Preparation(rate=257, band=band, resampling="polyphase", scaling=scaling)
    prepared = preparation.transform(record)
    split = SignalSplit(
        signals=[prepared], person=torch.zeros(1, 5), labels=torch.zeros(1, 1), ids=torch.zeros(1).long(), length=1500,
        rate=257, window="centre",
    )  # fmt: skip
    batch = split.batch(torch.tensor([0]), 0)
    view = Leads(("II", "V2", "aVR"))
    (expected, _), _ = view(batch)
    description = view.describe(describe_preparation(preparation, length=1500, window="centre"))
    assert description["leads"] == ["II", "V2", "aVR"]
    followed = follow(description, dict(zip(LEADS, signal.astype(np.float64), strict=True)), 500)
    np.testing.assert_allclose(followed, expected[0].numpy(), atol=1e-5)


def test_simulated_data_describes_its_signals_and_says_what_they_are_not_for():
    description = Synthetic(train=1, validation=1, test=1, rate=250, length=500).preparation
    assert (description["rate"], description["length"], description["unit"]) == (250.0, 500, "mV")
    assert [step["step"] for step in description["steps"]] == ["leads", "interpolate_invalid", "resample", "window"]
    assert description["person"]["features"][:2] == ["age / 100", "age known"]
    assert "not a medical device" in description["notices"][0]
