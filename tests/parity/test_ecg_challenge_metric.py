"""Compare the challenge metric, and all other figures of the official scorers, to their output, edge cases included."""

import json

import numpy as np
import pytest

from kdkit_ecg.labels import scored_classes
from kdkit_ecg.metrics import challenge_metric, official_figures

YEARS = pytest.mark.parametrize("year", [2020, 2021])
NAMES = {"auroc_class": "auroc_by_class", "auprc_class": "auprc_by_class", "f_measure_class": "f_measure_by_class"}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "ecg"


@YEARS
def test_all_figures_of_all_cases_equal_the_official_ones(golden, year):
    arrays = np.load(golden / f"challenge_metric_{year}.npz")
    cases = {key.split("/")[0] for key in arrays.files if "/" in key}
    assert len(cases) == 23
    compared = 0
    for case in cases:
        labels, decisions, scores = (arrays[f"{case}/{name}"] for name in ("labels", "binary", "scores"))
        ours = official_figures(labels, decisions, scores, year)
        assert challenge_metric(labels, decisions, year) == ours.challenge_metric
        for key in arrays.files:
            if key.startswith(f"{case}/expected/"):
                name = key.rsplit("/", 1)[1]
                figure = getattr(ours, NAMES.get(name, name))
                np.testing.assert_allclose(figure, arrays[key], rtol=0, atol=1e-9, equal_nan=True, err_msg=key)
                compared += 1
    assert compared == 23 * (11 if year == 2020 else 9)


@YEARS
def test_classes_are_in_the_official_order(golden, year):
    official = np.load(golden / f"challenge_metric_{year}.npz")["class_codes"].tolist()
    assert [codes.split("|")[0] for codes in official] == list(scored_classes(year).codes)
    equivalent = np.load(golden / "challenge_weights.npz")[f"equivalent_{year}"].tolist()
    columns = scored_classes(year).columns
    assert all(columns[first] == columns[second] for first, second in equivalent)


def test_output_files_give_the_official_labels_and_figures(golden):
    for case in json.loads((golden / "challenge_files.json").read_text())["cases"]:
        year = int(case["challenge"])
        labels = np.stack([scored_classes(year).row(record["dx"]) for record in case["records"]])
        assert np.array_equal(labels, np.array(case["expected_labels"]))
        decisions, scores = np.array(case["expected_binary"]), np.array(case["expected_scores"])
        ours = official_figures(labels, decisions, scores, year)
        for name, expected in case["expected"].items():
            official = np.array(expected, dtype=np.float64)  # None becomes NaN
            np.testing.assert_allclose(getattr(ours, NAMES.get(name, name)), official, rtol=0, atol=1e-9, err_msg=name)
