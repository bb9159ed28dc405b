"""Compare resampling, filtering and scaling of signals to golden numbers, the authors' resampling included."""

import json

import numpy as np
import pytest

from kdkit_ecg.records.filters import bandpass, resample, resample_linear, zscore


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "ecg" / "preprocess.npz")


@pytest.fixture(scope="module")
def golden_index(shared):
    return json.loads((shared / "golden" / "ecg" / "preprocess.json").read_text())


def authors_filter(steps, rate):
    # The authors' cut-offs were designed for 500 Hz but used at 257 Hz; this is a stable filter of the resulting band.
    return zscore(bandpass(resample_linear(steps, rate, 257), 257, 0.001 * 257 / 500, 47 * 257 / 500))


KINDS = {
    "reference_linear_257": (lambda steps, mv, rate: resample_linear(steps, rate, 257), {"atol": 1e-6, "rtol": 0}),
    "polyphase_257_mV": (lambda steps, mv, rate: resample(mv, rate, 257), {"atol": 1e-9, "rtol": 0}),
    "bandpass_0.5_47": (lambda steps, mv, rate: bandpass(mv, rate, 0.5, 47), {"rtol": 1e-6, "atol": 1e-9}),
    "bandpass_0.001_47": (lambda steps, mv, rate: bandpass(mv, rate, 0.001, 47), {"rtol": 1e-6, "atol": 1e-9}),
    "reference_filter_as_sos_then_zscore": (
        lambda steps, mv, rate: authors_filter(steps, rate),
        {"rtol": 1e-6, "atol": 1e-9},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_signals_equal_the_golden_ones(golden, golden_index, kind):
    change, tolerance = KINDS[kind]
    assert len(golden_index["records"]) == 9
    for record in golden_index["records"]:
        name = record["record"]
        steps = golden[f"{name}/adc"].astype(np.float64)
        mv = (steps - golden[f"{name}/baseline"][:, None]) / golden[f"{name}/gain_per_mV"][:, None]
        signal = change(steps, mv, record["fs"])
        middle = signal.shape[1] // 2
        statistics = {
            "length": signal.shape[1],
            "mean": signal.mean(axis=1),
            "std": signal.std(axis=1),
            "first64": signal[:2, :64],
            "middle64": signal[:2, middle : middle + 64],
            "last16": signal[:2, -16:],
        }
        for part, value in statistics.items():
            assert np.allclose(value, golden[f"{name}/{kind}/{part}"], **tolerance), (name, part)


def test_lengths_are_those_of_the_table(golden_index):
    for rate, time, linear, polyphase in golden_index["length_table"]["rows"]:
        signal = np.zeros((1, time))
        assert resample_linear(signal, rate, 257).shape[1] == linear
        assert resample(signal, rate, 257).shape[1] == polyphase


def test_tones_above_the_nyquist_frequency_vanish_and_others_stay(golden_index):
    for rate, hertz, samples, before, *_ in golden_index["alias_test"]["rows"]:
        tone = np.sin(2 * np.pi * hertz * np.arange(samples) / rate)[None]
        after = float(np.sqrt((resample(tone, rate, 257)[:, 300:-300] ** 2).mean()))
        assert after < 0.05 if hertz > 128.5 else after == pytest.approx(before, rel=0.02)
