"""The challenge metric and all other figures equal those of the official scorers, edge cases included."""

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
def test_every_case_has_every_official_figure(golden, year):
    arrays = np.load(golden / f"challenge_metric_{year}.npz")
    cases = {key.split("/")[0] for key in arrays.files if "/" in key}
    assert len(cases) == 23
    comparisons = 0
    for case in cases:
        labels, binary_outputs, scores = (arrays[f"{case}/{name}"] for name in ("labels", "binary", "scores"))
        figures = official_figures(labels, binary_outputs, scores, year)
        assert challenge_metric(labels, binary_outputs, year) == figures.challenge_metric
        for key in arrays.files:
            if key.startswith(f"{case}/expected/"):
                name = key.rsplit("/", 1)[1]
                figure = getattr(figures, NAMES.get(name, name))
                np.testing.assert_allclose(figure, arrays[key], rtol=0, atol=1e-9, equal_nan=True, err_msg=key)
                comparisons += 1
    assert comparisons == 23 * (11 if year == 2020 else 9)


@YEARS
def test_classes_are_in_the_official_order(golden, year):
    official = np.load(golden / f"challenge_metric_{year}.npz")["class_codes"].tolist()
    assert [codes.split("|")[0] for codes in official] == list(scored_classes(year).codes)
    equivalent = np.load(golden / "challenge_weights.npz")[f"equivalent_{year}"].tolist()
    columns = scored_classes(year).columns
    assert all(columns[first] == columns[second] for first, second in equivalent)


def test_whole_output_files_have_the_official_labels_and_figures(golden):
    for case in json.loads((golden / "challenge_files.json").read_text())["cases"]:
        year = int(case["challenge"])
        labels = np.stack([scored_classes(year).row(record["dx"]) for record in case["records"]])
        assert np.array_equal(labels, np.array(case["expected_labels"]))
        binary_outputs, scores = np.array(case["expected_binary"]), np.array(case["expected_scores"])
        figures = official_figures(labels, binary_outputs, scores, year)
        for name, expected in case["expected"].items():
            figure = getattr(figures, NAMES.get(name, name))
            expected_figure = np.array(expected, dtype=np.float64)  # None becomes NaN
            np.testing.assert_allclose(figure, expected_figure, rtol=0, atol=1e-9, err_msg=name)
