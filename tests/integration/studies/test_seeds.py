"""Tests of `kdkit run --seeds`: the same run with several seeds, in one folder, with a verdict over them."""

import csv
import json
from contextlib import nullcontext

import pytest

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Match, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def samples(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(width: int = 4, unlucky: int = -1) -> Recipe:
    if torch.initial_seed() == unlucky:
        raise ValueError("unlucky")
    teacher = nn.Linear(4, 3)
    teacher.load_state_dict({"weight": 3 * torch.eye(4)[:3], "bias": torch.zeros(3)})
    student = Net("student", nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)))
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(Net("teacher", teacher, trained=True), SoftTargets())
    return Recipe(
        data=TorchData(samples(24, 0), samples(40, 1), samples(40, 2)),
        schedule=[Stage({student: objective}, Training(epochs=1, batch_size=8))],
    )
"""


@pytest.fixture
def kdkit(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    return kdkit_here


def seeds_in(folder):
    return sorted(json.loads(file.read_text())["seed"] for file in folder.glob("*/run.json"))


def test_seeds_make_a_folder_of_runs_and_one_verdict_and_are_resumed(kdkit, tmp_path):
    arguments = ("run", "mine.py", "--seeds", "2", "--seed", "3", "--baseline", "--width", "5", "--device", "cpu")
    result = kdkit(*arguments)
    assert result.code == 0, result
    folder = tmp_path / "runs" / "mine-seeds"
    assert seeds_in(folder) == [3, 4]
    assert "Metrics on test, mean ± standard deviation over 2 seeds\n" in result.out
    assert result.out.count(" in this run\n") == 2  # without the advice to run several seeds
    assert "Accuracy on the test split, on average over 2 seeds, is " in result.out
    assert "(Student's t interval over 2 seeds, paired by seed: " in result.out

    again = kdkit(*arguments)
    assert "2 seeds in runs/mine-seeds, 2 of them finished" in again.out
    assert again.out.count("skipped") == 2

    (folder / "seed=4" / "trial.json").unlink()  # as if it had been killed at its end
    more = kdkit("run", "--resume", "runs/mine-seeds", "--seeds", "3")
    assert more.code == 0, more.err
    assert seeds_in(folder) == [3, 4, 5]
    assert all(f"seed={seed} {state}" in more.out for seed, state in ((3, "skipped"), (4, "finished"), (5, "finished")))
    assert "3 of them finished" in kdkit("run", "--resume", "runs/mine-seeds").out


def test_added_seeds_that_did_not_finish_are_resumed_too(kdkit, tmp_path):
    folder = tmp_path / "all"
    arguments = ("run", "mine.py", "--out", "all", "-q", "--device", "cpu", "--seeds")
    assert kdkit(*arguments, "1").code == 0
    (folder / "seed=1").write_text("in the way of this run")
    assert kdkit(*arguments, "3").code == 1
    assert seeds_in(folder) == [0, 2]
    (folder / "seed=1").unlink()
    assert kdkit("run", "--resume", "all").code == 0
    assert seeds_in(folder) == [0, 1, 2]


def test_one_of_the_runs_is_repeated_by_its_own_command(kdkit, tmp_path):
    assert kdkit("run", "mine.py", "--seeds=0,7", "--out", "all", "-q", "--width", "6").code == 0
    command = json.loads((tmp_path / "all" / "seed=7" / "run.json").read_text())["command"]
    assert command["arguments"][1:] == ["-q", "--width", "6", "--seed", "7"]
    rerun = kdkit("rerun", "all/seed=7")
    assert rerun.code == 0, rerun
    assert (tmp_path / "all-rerun" / "seed=7" / "run.json").is_file()  # not among the seeds, where it would count twice
    refused = kdkit("rerun", "all")
    assert refused.code == 2
    assert "all holds several runs; rerun one of them, such as all/seed=0" in refused.err


def test_a_seed_that_fails_or_is_damaged_costs_its_own_run(kdkit, tmp_path):
    arguments = ("run", "mine.py", "--seeds", "3", "--unlucky", "1", "--device", "cpu")
    result = kdkit(*arguments)
    assert result.code == 1
    assert "seed=0 finished" in result.out
    assert "error: seed=1 failed: ValueError: unlucky" in result.err
    (tmp_path / "runs" / "mine-seeds" / "seed=0" / "metrics.json").write_text("{}")
    again = kdkit(*arguments)
    assert (again.code, again.err.count("error: ")) == (1, 2), again.err
    assert "error: runs/mine-seeds/seed=0/metrics.json cannot be read: it has no checksum" in again.err
    assert "Metrics on test, one seed" in again.out
    (tmp_path / "runs" / "mine-seeds" / "seed=2" / "run.json").write_text("{}")
    last = kdkit(*arguments, "-q")
    assert (last.code, last.err.count("error: ")) == (1, 3), last.err
    assert "Metrics" not in kdkit(*arguments).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be a number of seeds, at least 1"),
        (["--seeds", "x"], "expected a number of seeds, or seeds such as 0,1,2; got 'x'"),
        (["--seeds", "1,1"], "--seeds must be different integers of at least 0; got 1,1"),
        (["--seeds", "1,2", "--seed", "3"], "--seed is the first seed of --seeds N"),
        (["--seeds", "2", "--out", "one"], "one is the folder of a single run, not of several"),
        (
            ["--seeds", "2", "--out", "mine.py"],
            "mine.py cannot be written: mine.py is not a folder; choose another place",
        ),
        (["--seeds", "2", "--out", "thesis"], "thesis holds no runs, but 'chapter'; choose another folder (--out"),
        (["--seeds", "2", "--device", "gpu7"], "gpu7"),
        (["--seeds", "2", "--log", "cvs"], "did you mean 'csv'"),
    ],
)
def test_a_contradiction_is_refused_before_anything_is_written(kdkit, arguments, message, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text("{}")
    (tmp_path / "thesis" / "chapter").mkdir(parents=True)
    result = kdkit("run", "mine.py", *arguments)
    assert result.code == 2, result
    assert message in " ".join(result.err.split())
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert files == ["mine.py", "one", "one/run.json", "thesis", "thesis/chapter"]


def test_a_recipe_file_that_is_edited_while_seeds_run_is_recorded_as_it_was_read(kdkit, tmp_path):
    edits = RECIPE.replace(
        "    if torch", "    with open(__file__, 'a') as file:\n        file.write('#')\n    if torch"
    )
    (tmp_path / "mine.py").write_text(edits)
    result = kdkit("run", "mine.py", "--seeds", "2", "--out", "all", "--device", "cpu")
    assert "Accuracy on the test split, on average over 2 seeds" in result.out, result
    assert (tmp_path / "mine.py").read_text() == f"{edits}##"
    copies = [file.read_text() for file in (tmp_path / "all").rglob("recipe.py")]
    assert copies == [edits] * 3
    assert kdkit("run", "mine.py", "--seeds", "2", "--out", "all").code == 2


def test_a_folder_of_seeds_takes_no_run_with_other_options(kdkit, tmp_path):
    arguments = ("run", "mine.py", "--out", "all", "--device", "cpu", "-q", "--seeds")
    assert kdkit(*arguments, "1").code == 0
    changes = {
        ("3", "--width", "5"): "such as seed=0, which differs in its option width: it was 4, and now it is 5; pass",
        ("5,6", "--width", "5"): "its option width",
        ("1", "--precision", "bf16"): "its precision: it was fp32, and now it is bf16",
        ("1", "--baseline"): "its baseline: it was False, and now it is True",
    }
    for options, message in changes.items():
        refused = kdkit(*arguments, *options)
        assert (refused.code, message in refused.err) == (2, True), refused.err
    (tmp_path / "mine.py").write_text(f"{RECIPE}\n# edited\n")
    assert "differs in the code of its recipe, which has changed; pass" in kdkit(*arguments, "1").err
    (tmp_path / "mine.py").write_text(RECIPE)
    assert seeds_in(tmp_path / "all") == [0]
    assert kdkit("run", "mine.py", "--out", "all", "--verbose", "--teacher-cache", "off", "--seeds", "1").code == 0


def test_torchrun_and_seeds_exclude_each_other(kdkit, monkeypatch):
    monkeypatch.setattr("kdkit.cli.main._process_group", nullcontext)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    result = kdkit("run", "mine.py", "--seeds", "2")
    assert result.code == 2
    assert "leave out --seeds, or torchrun" in result.err


def test_a_damaged_command_is_named(kdkit, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "command.json").write_text("{}")
    result = kdkit("run", "--resume", "runs")
    assert result.code == 2
    assert "runs/command.json cannot be read: it has no checksum" in result.err


def test_every_run_of_a_study_logs_into_its_folder(kdkit, tmp_path):
    for command, folder in (("run", "seeds"), ("sweep", "sweep")):
        result = kdkit(command, "mine.py", "--seeds", "2", "--log", "csv", "--out", folder, "-q", "--device", "cpu")
        assert result.code == 0, result.err
        assert [(tmp_path / folder / f"seed={seed}" / "log.csv").is_file() for seed in (0, 1)] == [True, True]


def test_a_sweep_with_baselines_compares_each_option_with_its_own(kdkit, tmp_path):
    arguments = ("--width", "3,6", "--seeds", "2", "--baseline", "--device", "cpu", "--out", "sweep", "-q")
    result = kdkit("sweep", "mine.py", *arguments)
    assert result.code == 0, result
    assert "accuracy minus that of the same student alone (97.5 % interval)" in " ".join(result.out.split())
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    content = json.loads((tmp_path / "sweep" / "results.json").read_text())
    for row in rows:
        metrics = json.loads((tmp_path / f"sweep/width={row['width']},seed={row['seed']}/metrics.json").read_text())
        assert float(row["alone_accuracy"]) == metrics["metrics"]["student-alone"]["accuracy"]["value"]
        assert float(row["accuracy"]) == metrics["metrics"]["student"]["accuracy"]["value"]
    for width, cell in zip((3, 6), content["cells"], strict=True):
        differences = [
            float(row["accuracy"]) - float(row["alone_accuracy"]) for row in rows if row["width"] == str(width)
        ]
        comparison = cell["this_minus_alone"]
        assert comparison["seeds"]["value"] == pytest.approx(sum(differences) / 2)
        assert comparison["samples"]["pairs"] == 40
        assert cell["metrics_alone"].keys() == cell["metrics"].keys()
    report = kdkit("report", "sweep")
    assert all(f"width={width}, 2 seeds" in report.out for width in (3, 6)), report.out


def test_a_sweep_of_one_seed_speaks_of_its_runs(kdkit):
    result = kdkit("sweep", "mine.py", "--width", "3,6", "--seeds", "1", "--baseline", "--device", "cpu")
    assert result.code == 0, result
    out = " ".join(result.out.split())
    assert "one seed cannot tell which options are better, or whether distillation helps: --seeds 5" in out
    assert "in this run" in out
