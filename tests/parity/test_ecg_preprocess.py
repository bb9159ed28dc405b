"""Resampling, band-pass and z-score equal the golden numbers, including the resampling of the LRH-Net authors."""

import json
import math

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
    # The authors use cut-offs for 500 Hz at 257 Hz. This is a stable filter with the resulting band.
    return zscore(bandpass(resample_linear(steps, rate, 257), 257, 0.001 * 257 / 500, 47 * 257 / 500))


def between_zeros(mv, rate):
    # The golden signals are continued by zeros, and ours by the line through their ends, which are 0 here.
    samples = math.ceil(mv.shape[1] * 257 / rate)
    resampled = resample(np.pad(mv, ((0, 0), (rate, rate))), rate, 257)  # a second of zeros, and so 257 samples
    return resampled[:, 257 : 257 + samples]


KINDS = {
    "reference_linear_257": (lambda steps, mv, rate: resample_linear(steps, rate, 257), {"atol": 1e-6, "rtol": 0}),
    "polyphase_257_mV": (lambda steps, mv, rate: between_zeros(mv, rate), {"atol": 1e-9, "rtol": 0}),
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
        statistics = {
            "length": ours.shape[1],
            "mean": ours.mean(axis=1),
            "std": ours.std(axis=1),
            "first64": ours[:2, :64],
            "middle64": ours[:2, middle : middle + 64],
            "last16": ours[:2, -16:],
        }
        for part, value in statistics.items():
            assert np.allclose(value, golden[f"{name}/{kind}/{part}"], **tolerance), (name, part)


def test_lengths_equal_those_of_the_golden_table(facts):
    for rate, time, linear, polyphase in facts["length_table"]["rows"]:
        signal = np.zeros((1, time))
        assert resample_linear(signal, rate, 257).shape[1] == linear
        assert resample(signal, rate, 257).shape[1] == polyphase


def test_tones_above_half_the_rate_are_removed_and_others_kept(facts):
    for rate, hertz, samples, before, *_ in facts["alias_test"]["rows"]:
        tone = np.sin(2 * np.pi * hertz * np.arange(samples) / rate)[None]
        after = float(np.sqrt((resample(tone, rate, 257)[:, 300:-300] ** 2).mean()))
        assert after < 0.05 if hertz > 128.5 else after == pytest.approx(before, rel=0.02)
