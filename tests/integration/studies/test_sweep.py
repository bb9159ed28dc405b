"""Tests of `kdkit sweep`: a grid of options and seeds from the command line, with a table and verdicts at the end."""

import json
import re
from pathlib import Path

import pytest

RECIPE = '''
"""A linear student."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def samples(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def counted(inputs):
    """A teacher that counts the samples of its calls in a file."""
    with Path("calls").open("a") as file:
        file.write(f"{len(inputs)}\\n")
    return 3 * inputs[:, :3]


def recipe(
    lr: float = 0.3,
    sizes: tuple[int, ...] = (1,),
    mode: Literal["one", "two"] = "one",
    names: str = "x",
    flag: bool = False,
    flags: tuple[bool, ...] = (),
    width: int | None = None,
    place: Path | None = None,
) -> Recipe:
    """Return a student.

    lr: the learning rate.
    """
    if width == 13:
        raise ValueError("unlucky")
    if width == 0:
        raise SystemExit("no width")
    student, teacher = Net("student", nn.Linear(4, 3)), Net("teacher", counted, version="1")
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
    training = Training(epochs=2, batch_size=16, optimizer=Optimizer(torch.optim.SGD, lr=lr))
    data = TorchData(samples(64, 0), samples(60, 1), samples(100, 2))
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])
'''


@pytest.fixture
def sweep(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)

    def run(*args):
        return kdkit_here("sweep", "mine.py", "--device", "cpu", *args)

    return run


def recorded_options(folder: Path) -> list[dict[str, str]]:
    return [json.loads(file.read_text())["options"] for file in sorted(folder.glob("*/run.json"))]


def test_a_sweep_prints_a_table_and_the_verdicts(sweep, tmp_path):
    result = sweep("--lr", "1e-6,0.3", "--seeds", "2")
    assert result.code == 0, result
    assert "4 runs in runs/mine-sweep: 2 combinations x 2 seeds" in result.out.splitlines()[0]
    assert result.out.count(" finished in ") == 4
    assert "Metrics of student on test, mean ± standard deviation over 2 seeds, * best on validation\n" in result.out
    assert "│ lr=0.3 * " in result.out
    assert "accuracy of lr=0.3 minus that of others (95 % interval)" in result.out
    content = json.loads((tmp_path / "runs" / "mine-sweep" / "results.json").read_text())
    assert content["best"] == {"lr": 0.3}
    compared = sweep("--lr", "1e-6,0.3", "--seeds", "2", "--reference", "lr=0.000001")
    assert compared.code == 0, compared
    assert "accuracy minus that of lr=1e-06 (95 % interval)" in compared.out
    for texts in (["device=cpu"], ["lr"], ["lr=0.1,0.2"], ["lr=0.3", "lr=1e-6"]):
        references = [word for text in texts for word in ("--reference", text)]
        refused = sweep("--lr", "1e-6,0.3", "--seeds", "2", *references)
        assert (refused.code, "--reference must be lr=VALUE" in refused.err) == (2, True), refused


def test_the_same_command_again_skips_what_is_finished(sweep, tmp_path):
    first = sweep("--lr", "0.3", "--seeds", "1")
    assert "1 run in runs/mine-sweep: 1 combination x 1 seed" in first.out
    result = sweep("--lr", "0.3,0.1", "--seeds", "2")
    assert result.code == 0, result
    assert "4 runs in runs/mine-sweep: 2 combinations x 2 seeds, 1 of them finished" in result.out
    assert result.out.count(" skipped") == 1
    assert result.out.count(" finished in ") == 3
    files = sorted(tmp_path.rglob("*"))
    changes = {
        ("--lr", "0.1,0.5"): "such as lr=0.3,seed=0, which differs in its option lr: it was 0.3, and now it is 0.1",
        ("--lr", "0.1,0.3", "--names", "y"): "its option names: it was x, and now it is y",
        ("--width", "5,6"): "its option width: it was None, and now it is 5",
        ("--lr", "0.1,0.3", "--names", "x"): "lr=0.1,seed=0, which would be run again as lr=0.1,names=x,seed=0",
        ("--lr", "0.1,0.3", "--baseline"): "its baseline: it was False, and now it is True",
    }
    for options, message in changes.items():
        refused = sweep(*options, "--seeds", "3")
        assert (refused.code, message in refused.err) == (2, True), refused.err
    assert sorted(tmp_path.rglob("*")) == files
    table = tmp_path / "runs" / "mine-sweep" / "results.json"
    table.unlink()
    table.mkdir()  # so that it cannot be written, as on a full disk
    unsaved = sweep("--lr", "0.3,0.1", "--seeds", "2")
    assert (unsaved.code, "Metrics of student" in unsaved.out, "saved to" in unsaved.out) == (1, True, False), unsaved
    assert "error: runs/mine-sweep/results.json cannot be written: " in unsaved.err


def test_a_cell_is_resumed_and_repeated_by_its_folder(sweep, kdkit_here, tmp_path):
    values = ["--lr", "0.1", "--sizes", "2,3", "--flag", "yes", "--flags", "no,yes", "--width", "none"]
    values += ["--place", "./none", "--names", "a b", "--seeds", "3,4", "--out", "all", "--average-over", "--names"]
    assert sweep(*values, "--metric", "macro_f1", "-q").code == 0
    cell = next((tmp_path / "all").glob("*seed=4"))
    arguments = json.loads((cell / "run.json").read_text())["command"]["arguments"]
    assert arguments[1:] == [
        *("--device", "cpu", "-q", "--lr=0.1", "--sizes=2", "--sizes=3", "--names=a b", "--flag"),
        *("--no-flags", "--flags", "--width=none", "--place=./none", "--seed", "4"),
    ]
    rerun = kdkit_here("rerun", cell)
    assert rerun.code == 0, rerun
    assert (tmp_path / "all-rerun" / cell.name / "metrics.json").is_file()

    (cell / "trial.json").unlink()  # as if it had been killed
    (cell / "1-student" / "stage.json").unlink()
    assert kdkit_here("run", "--resume", cell, "-q").code == 0
    assert (cell / "1-student" / "stage.json").exists()
    again = sweep(*values)
    assert (again.code, again.out.count(" finished in 0 s")) == (0, 1)


def test_every_type_of_option_takes_several_values(sweep, tmp_path):
    args = ("--sizes", "1,2", "--sizes", "3", "--mode", "two", "--flag", "yes,no", "--names", "a, b", "--width", "5")
    result = sweep(*args, "--seeds", "1", "--out", "all")
    assert result.code == 0, result
    records = recorded_options(tmp_path / "all")
    assert {record["sizes"] for record in records} == {"(1, 2)", "(3,)"}
    assert {record["flag"] for record in records} == {"True", "False"}
    assert {record["names"] for record in records} == {"a", "b"}
    assert {(record["mode"], record["width"]) for record in records} == {("two", "5")}
    assert len(records) == 8


def test_a_repeated_option_takes_values_with_commas(sweep, tmp_path):
    assert sweep("--names", "a,b", "--names", "c", "--seeds", "1").code == 0
    assert {record["names"] for record in recorded_options(tmp_path / "runs" / "mine-sweep")} == {"a,b", "c"}


def test_failed_runs_are_listed_and_the_others_are_compared(sweep):
    result = sweep("--width", "12,13,14", "--seeds", "2")
    assert result.code == 1, result
    assert result.err.count("ValueError: unlucky") == 2
    line = next(number for number, text in enumerate(RECIPE.splitlines(), 1) if "unlucky" in text)
    assert f"error: width=13,seed=1 failed: ValueError: unlucky (raised in mine.py, line {line})" in result.err
    assert re.search("│ width=13 +│ +0 │", result.out)
    assert "not distinguishable" in result.out


def test_a_recipe_that_exits_ends_its_own_run_only(sweep):
    result = sweep("--width", "0,12", "--seeds", "1")
    assert result.code == 1, result
    assert "error: width=0,seed=0 failed: recipe() raises SystemExit: no width; recipe() must return" in result.err
    assert "width=12,seed=0 finished" in result.out


def test_a_damaged_run_is_named_and_the_others_are_compared(sweep, tmp_path):
    values = ("--width", "4,5", "--seeds", "2", "--baseline")
    assert sweep(*values, "-q").code == 0
    metrics, *predictions = (
        tmp_path / "runs" / "mine-sweep" / file
        for file in (
            "width=4,seed=0/metrics.json",
            "width=4,seed=1/2-student-alone/predictions-student-alone-test.safetensors",
            "width=5,seed=0/1-student/predictions-student-validation.safetensors",
        )
    )
    metrics.write_text(metrics.read_text().replace('"value": ', '"value": 1'))
    result = sweep(*values)
    assert (result.code, result.err.count("error: ")) == (1, 1), result.err
    assert f"error: runs/mine-sweep/width=4,seed=0/{metrics.name} cannot be read: its checksum" in result.err
    assert re.search("│ width=4 \\*? +│ +1 │", result.out), result.out
    left_out = json.loads((tmp_path / "runs" / "mine-sweep" / "results.json").read_text())["left_out"]
    assert len(left_out) == 1
    for file in predictions:
        file.write_bytes(file.read_bytes()[:-1])
    result = sweep(*values, "-q")
    assert [file.name in result.err for file in (metrics, *predictions)] == [True] * 3, result.err
    assert re.search("│ width=5 \\*? +│ +1 │", result.out), result.out
    (tmp_path / "runs" / "mine-sweep" / "width=5,seed=1" / "metrics.json").unlink()
    # Nothing is left to compare, and the reason of a run that fails is printed too.
    result = sweep("--width", "4,5,13", *values[2:])
    assert (result.code, list(tmp_path.rglob("*.tmp"))) == (1, [])
    assert [word in result.err for word in ("ValueError: unlucky", metrics.name)] == [True, True], result.err


def test_a_sweep_of_which_every_run_fails_has_no_table(sweep, tmp_path):
    result = sweep("--width", "13", "--seeds", "2")
    assert result.code == 1, result
    assert "Metrics" not in result.out
    assert not (tmp_path / "runs" / "mine-sweep" / "results.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lr", "0.1,0.1"], ["lr=0.1 twice"]),
        (["--lrr", "0.1"], ["No such option", "--lr"]),
        (["--lr", "0.1,"], ["separated by commas", "'0.1,'"]),
        (["--lr", "a"], ["'a' is not a valid float"]),
        (["--mode", "one,three"], ["three"]),
        (["--seeds", "0"], ["seeds must be"]),
        (["--seeds", "x"], ["number of seeds"]),
        (["--seeds", "1,1"], ["different integers"]),
        (["--metric", "acc"], ["no metric 'acc'"]),
        (["--net", "studnt"], ["did you mean 'student'"]),
        (["--device", "gpu7"], ["gpu7"]),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(args, words, sweep, tmp_path):
    result = sweep(*args)
    assert result.code == 2, result
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.glob("runs/*/*/metrics.json"))


def test_the_options_of_runs_pass_through(sweep, tmp_path):
    result = sweep("--precision", "bf16", "--teacher-cache", "cached", "--seeds", "3,5", "--quiet")
    assert result.code == 0, result
    records = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("runs/*/*/run.json"))]
    assert [(record["precision"], record["seed"]) for record in records] == [("bf16", 3), ("bf16", 5)]
    assert (tmp_path / "cached").is_dir()
    assert "runs in" not in result.out


def test_a_teacher_runs_once_for_all_runs(sweep, tmp_path):
    assert sweep("--lr", "0.1,0.2,0.3", "--seeds", "2").code == 0
    calls = [int(line) for line in (tmp_path / "calls").read_text().split()]
    # 64 samples once; the checks, audits and metrics of each of the 6 runs take other samples and a few of these.
    assert sum(calls) < 64 + 6 * (60 + 100 + 60)
    assert len(list((tmp_path / "runs" / "mine-sweep" / "teacher_cache").iterdir())) >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_runs_in_processes_give_the_same_results(sweep, tmp_path):
    assert sweep("--lr", "0.1,0.3", "--seeds", "2", "--out", "one").code == 0
    assert sweep("--lr", "0.1,0.3", "--seeds", "2", "--out", "two", "--jobs", "2").code == 0
    first, second = ((tmp_path / name / "results.csv").read_text() for name in ("one", "two"))
    assert first == second


def test_the_help_lists_the_options_of_the_recipe(sweep):
    result = sweep("--help")
    assert result.code == 0
    assert "--lr VALUE,..." in result.out
    assert "the learning rate." in result.out
    assert "[one|two],..." in result.out
