"""The challenge metric equals the official scorer's figures, edge rules and all."""

import json

import numpy as np
import pytest

from kdkit_ecg.labels import scored_classes
from kdkit_ecg.scores import challenge_metric

YEARS = pytest.mark.parametrize("year", [2020, 2021])


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "ecg"


@YEARS
def test_every_case_has_the_official_metric(golden, year):
    arrays = np.load(golden / f"challenge_metric_{year}.npz")
    cases = {key.split("/")[0] for key in arrays.files if "/" in key}
    assert len(cases) == 23
    for case in cases:
        ours = challenge_metric(arrays[f"{case}/labels"], arrays[f"{case}/binary"], year)
        assert ours == pytest.approx(float(arrays[f"{case}/expected/challenge_metric"]), abs=1e-9), case


@YEARS
def test_classes_stand_in_the_official_order(golden, year):
    official = np.load(golden / f"challenge_metric_{year}.npz")["class_codes"].tolist()
    assert [codes.split("|")[0] for codes in official] == list(scored_classes(year).codes)
    equivalent = np.load(golden / "challenge_weights.npz")[f"equivalent_{year}"].tolist()
    columns = scored_classes(year).columns
    assert all(columns[first] == columns[second] for first, second in equivalent)


def test_whole_output_files_have_the_official_labels_and_metric(golden):
    for case in json.loads((golden / "challenge_files.json").read_text())["cases"]:
        year = int(case["challenge"])
        labels = np.stack([scored_classes(year).row(record["dx"]) for record in case["records"]])
        assert np.array_equal(labels, np.array(case["expected_labels"]))
        ours = challenge_metric(labels, np.array(case["expected_binary"]), year)
        assert ours == pytest.approx(case["expected"]["challenge_metric"], abs=1e-9)
