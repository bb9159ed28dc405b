"""Rate, band and scale equal the golden numbers, the authors' way of resampling included."""

import json

import numpy as np
import pytest

from kdkit_ecg.records.filters import bandpass, resample, resample_linear, zscore


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "ecg" / "preprocess.npz")


@pytest.fixture(scope="module")
def facts(shared):
    return json.loads((shared / "golden" / "ecg" / "preprocess.json").read_text())


def authors_filter(steps, rate):
    # Cut-offs made for 500 Hz, used at 257 Hz, as a sound filter of the same band.
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
def test_signals_equal_the_golden_ones(golden, facts, kind):
    change, tolerance = KINDS[kind]
    assert len(facts["records"]) == 9
    for record in facts["records"]:
        name = record["record"]
        steps = golden[f"{name}/adc"].astype(np.float64)
        mv = (steps - golden[f"{name}/baseline"][:, None]) / golden[f"{name}/gain_per_mV"][:, None]
        ours = change(steps, mv, record["fs"])
        middle = ours.shape[1] // 2
        found = {
            "length": ours.shape[1],
            "mean": ours.mean(axis=1),
            "std": ours.std(axis=1),
            "first64": ours[:2, :64],
            "middle64": ours[:2, middle : middle + 64],
            "last16": ours[:2, -16:],
        }
        for part, value in found.items():
            assert np.allclose(value, golden[f"{name}/{kind}/{part}"], **tolerance), (name, part)


def test_lengths_are_those_of_the_table(facts):
    for rate, time, linear, polyphase in facts["length_table"]["rows"]:
        signal = np.zeros((1, time))
        assert resample_linear(signal, rate, 257).shape[1] == linear
        assert resample(signal, rate, 257).shape[1] == polyphase


def test_tones_beyond_half_the_rate_vanish_and_others_stay(facts):
    for rate, hertz, samples, before, *_ in facts["alias_test"]["rows"]:
        tone = np.sin(2 * np.pi * hertz * np.arange(samples) / rate)[None]
        after = float(np.sqrt((resample(tone, rate, 257)[:, 300:-300] ** 2).mean()))
        assert after < 0.05 if hertz > 128.5 else after == pytest.approx(before, rel=0.02)
