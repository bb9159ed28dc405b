"""The recipe of docs/ecg.md trains and evaluates on records of eight leads at 400 Hz with three classes of a user."""

import csv
import json

import numpy as np
import pytest
import wfdb
from safetensors.numpy import load_file

from kdkit.cli.main import call
from kdkit_ecg import Records
from kdkit_ecg.leads import LEADS
from kdkit_ecg.simulator import Simulator
from tests.helpers.command_line import ROOT

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
CLASSES = ("arrhythmia", "conduction", "none of these")
ARRHYTHMIA, CONDUCTION = {"AF", "AFL", "PAC", "PVC"}, {"RBBB", "LBBB", "IAVB", "CRBBB", "LAnFB"}


def own_classes(findings):
    found = [name for name, group in zip(CLASSES, (ARRHYTHMIA, CONDUCTION), strict=False) if group & set(findings)]
    return ";".join(found) or CLASSES[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 simulated records of 2 s, two of each patient, as a recorder of eight leads writes them."""
    folder = tmp_path_factory.mktemp("own") / "data"
    simulator = Simulator(seed=3, rate=400, length=800, difficulty=0.3)
    rows = [("record", "label", "patient")]
    for id in range(20):
        record = simulator.record(id)
        (folder / f"day{id % 3}").mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            f"ecg{id}",
            fs=400,
            units=["mV"] * 8,
            sig_name=[f"Lead {lead}" for lead in EIGHT],
            p_signal=record.signal[[LEADS.index(lead) for lead in EIGHT]].T,
            fmt=["16"] * 8,
            adc_gain=[1000.0] * 8,
            baseline=[0] * 8,
            write_dir=str(folder / f"day{id % 3}"),
        )
        rows.append((f"day{id % 3}/ecg{id}", own_classes(record.patient.findings), f"patient {id // 2}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The run folder of the recipe in docs/ecg.md."""
    text = (ROOT / "docs" / "ecg.md").read_text()
    code = text.split("## Your own records", 1)[1].split("```py\n", 1)[1].split("```", 1)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    recipe = tmp_path_factory.mktemp("recipe") / "own.py"
    recipe.write_text(code)
    options = {"data": folder, "epochs": 1, "width": 4, "device": "cpu", "out": recipe.parent / "run"}
    assert call(["run", str(recipe), *(f"--{name}={value}" for name, value in options.items())]) == 0
    return recipe.parent / "run"


def test_the_recipe_of_the_docs_trains_and_evaluates_a_student_for_the_leads_and_classes_of_the_user(run):
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"teacher", "student"}
    assert all(0 <= result["value"] <= 1 for result in metrics["student"].values())
    by_class = next(result["by_class"] for result in metrics["student"].values() if result.get("by_class"))
    assert set(by_class) <= set(CLASSES)
    weights = next(run.glob("*student*/weights.safetensors"))
    tensors = load_file(weights)
    assert next(value for name, value in tensors.items() if name.endswith("stem.conv.weight")).shape[1] == 8
    assert next(value for name, value in tensors.items() if name.endswith("classifier.weight")).shape[0] == 3


def test_records_of_the_run_equal_the_simulated_ones(folder):
    options = {"rate": 400, "length": 800, "scaling": "raw", "band": None, "shares": (1.0, 0.0, 0.0), "store": None}
    data = Records(folder, **options)
    assert (data.leads, data.classes) == (EIGHT, tuple(sorted(CLASSES)))
    name = data._selected[0][0].name
    expected = Simulator(seed=3, rate=400, length=800, difficulty=0.3).record(int(name.split("ecg")[1])).signal
    signal = data.train.batch([0], 0).inputs.signal[0].numpy()
    assert np.allclose(signal, expected[[LEADS.index(lead) for lead in EIGHT]], atol=6e-4)  # steps of 1 uV
