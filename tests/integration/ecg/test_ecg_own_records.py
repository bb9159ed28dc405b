"""The recipe of docs/ecg.md trains, evaluates, exports and predicts on eight leads at 400 Hz with classes of a user."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdkit.cli.main import call
from kdkit_ecg import Records
from kdkit_ecg.leads import LEADS
from kdkit_ecg.simulator import Simulator
from tests.helpers.command_line import ROOT
from tests.helpers.own_records import CLASSES, EIGHT, write_own_records, write_signal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 simulated records of 2 s, two of each patient, as a recorder of eight leads writes them."""
    folder = tmp_path_factory.mktemp("own") / "data"
    write_own_records(folder)
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


def test_a_check_shows_how_many_records_have_labels(run, folder, tmp_path, capsys):
    lines = (folder / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(lines[:-2]) + "\n")
    recipe = tmp_path / "own.py"
    recipe.write_text((run / "recipe.py").read_text().replace('"labels.csv"', repr(str(tmp_path / "labels.csv"))))
    assert call(["check", str(recipe), f"--data={folder}", "--width=4"]) == 0
    out = capsys.readouterr().out
    assert "18 of 20 records read" in out
    assert "2 excluded, no row in the table of labels" in out


def test_all_later_records_are_evaluated_with_the_thresholds_of_the_run(run, folder, tmp_path, capsys):
    def evaluate(shares, *options):
        recipe = tmp_path / "own.py"
        recipe.write_text((run / "recipe.py").read_text().replace("length=4000", f"length=4000, shares={shares}"))
        command = ["evaluate", str(recipe), f"--weights={run}", f"--data={folder}", "--width=4", "--device=cpu"]
        assert call([*command, *options]) == 0
        return capsys.readouterr().out

    out = evaluate("(0, 0, 1)", "--thresholds", "run")
    assert "on test, 20 samples" in out
    assert "note: 20 of 20 records read" in out
    notice = "note: thresholds are fitted on the validation split of this data; --thresholds run takes the run's"
    assert notice not in out
    assert notice in evaluate("(0, 0.5, 0.5)")


def test_records_of_the_run_equal_the_simulated_ones(folder):
    options = {"rate": 400, "length": 800, "scaling": "raw", "band": None, "shares": (1.0, 0.0, 0.0), "store": None}
    data = Records(folder, **options)
    assert (data.leads, data.classes) == (EIGHT, tuple(sorted(CLASSES)))
    name = data._selected[0][0].name
    expected = Simulator(seed=3, rate=400, length=800, difficulty=0.3).record(int(name.split("ecg")[1])).signal
    signal = data.train.batch([0], 0).inputs.signal[0].numpy()
    assert np.allclose(signal, expected[[LEADS.index(lead) for lead in EIGHT]], atol=6e-4)  # steps of 1 uV


def test_the_run_is_exported_and_predicts_records_of_any_leads_and_rate(run, folder, tmp_path, capsys):
    new = tmp_path / "new"
    signal = Simulator(seed=9, rate=1000, length=21_000, difficulty=0.3).record(0).signal  # two windows of 10 s
    write_signal(new, "long", signal, rate=1000, leads=LEADS)
    leads = ("III", "aVF", *EIGHT[2:])
    short = Simulator(seed=9, rate=250, length=500, difficulty=0.3).record(1).signal
    write_signal(new, "derived", short[[LEADS.index(lead) for lead in leads]], rate=250, leads=leads)
    write_signal(new, "limb", short[:6], rate=250, leads=LEADS[:6])
    assert call(["export", str(run), "--to", "pt2", "--points", "100"]) == 0
    capsys.readouterr()
    rows = {}
    for model in (run / "export" / "student.pt2", run):
        assert call(["predict", str(model), str(new), str(folder), "--format", "json"]) == 1
        rows[model.name] = list(map(json.loads, capsys.readouterr().out.splitlines()))
    exported, unexported = rows.values()
    by_name = {row["record"].rsplit("/", 1)[1]: row for row in exported}
    assert len(by_name) == len(exported) == 23
    assert {name for name, row in by_name.items() if row["refused"]} == {"limb"}
    assert by_name["derived"]["derived"] == ["I", "II"]
    assert len(by_name["long"]["windows"]) == 3
    assert set(by_name["long"]["classes"]) == set(CLASSES)
    for first, second in zip(exported, unexported, strict=True):
        assert first["record"] == second["record"]
        for name in CLASSES if first["refused"] is None else ():
            difference = first["classes"][name]["probability"] - second["classes"][name]["probability"]
            assert abs(difference) < 1e-5
