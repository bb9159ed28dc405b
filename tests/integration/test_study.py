"""A study runs each cell once, goes on after a kill in the same bits, and outlives a cell that fails."""

import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from kdkit import Net, Parallel, Recipe, RecipeError, RunOptions, Stage, Study, Trial, hookimpl
from kdkit.errors import RunFolderError
from kdkit.losses import SoftTargets
from tests.helpers.processes import ForkedPython, run_python
from tests.helpers.stages import Small, data, training, truth

CPU = RunOptions(device="cpu")

RECIPE = '''
"""A net that waits in its third epoch where a file asks for it, and a student of it."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Trial, Match, Net, Recipe, RunOptions, Stage, Study, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(width, teacher=None):
    net = Net("net", nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 3)))
    objective = Truth(nn.CrossEntropyLoss())
    if teacher is not None:
        module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
        master = Net("master", module, weights=teacher / "1-net" / "weights.safetensors")
        objective = 0.5 * objective + 0.5 * Match(master, SoftTargets())
    return Recipe(
        data=TorchData(samples(24, 0), samples(12, 1), samples(12, 2)),
        schedule=[Stage({net: objective}, Training(epochs=4, batch_size=8))],
    )


class Waiting:
    @kdkit.hookimpl
    def epoch_ended(self, event):
        if Path("wait").exists() and event.epoch == 2:
            Path("waiting").touch()
            time.sleep(60)


trials = [
    Trial(name="big", recipe=recipe, options={"width": 8}, seed=1),
    Trial(name="small", recipe=recipe, options={"width": 4}, needs={"teacher": "big"}, seed=1),
]
if __name__ == "__main__":
    for outcome in Study(sys.argv[1], trials).run(RunOptions(device="cpu"), callbacks=[Waiting()]):
        print(outcome.trial.name, outcome.state, outcome.error or "")
'''


def recipe(width: int = 4, teacher: Path | None = None, teachers: tuple[Path, ...] = ()) -> Recipe:
    """A net alone, or one that learns from a cell's."""
    if width < 0:
        raise ValueError("no width")
    net = Net("net", Small(width))
    folders = (*teachers, *([teacher] if teacher else []))
    masters = [
        Net(f"master{place}", Small(8), weights=folder / "1-net" / "weights.safetensors")
        for place, folder in enumerate(folders)
    ]
    once = training(epochs=1)
    if not masters:
        return Recipe(data=data(), schedule=[Stage({net: truth()}, once)])
    schedule = Parallel(*masters, net, truth=truth(), kd_loss=SoftTargets(), training=once)
    return Recipe(data=data(), schedule=schedule)


def pair(width: int = 4, **teacher: int) -> list[Trial]:
    return [
        Trial(name="big", recipe=recipe, options={"width": 8}, **teacher),
        Trial(name="small", recipe=recipe, options={"width": width}, needs={"teacher": "big"}),
    ]


def states(study: Study, options: RunOptions = CPU) -> dict[str, str]:
    return {outcome.trial.name: outcome.state for outcome in study.run(options)}


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)}:{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def test_a_cell_that_is_done_is_skipped_and_a_new_one_is_run(tmp_path):
    assert states(Study(tmp_path, pair()[:1])) == {"big": "done"}
    before = (tmp_path / "big" / "metrics.json").stat().st_mtime_ns
    assert states(Study(tmp_path, pair())) == {"big": "skipped", "small": "done"}
    assert (tmp_path / "big" / "metrics.json").stat().st_mtime_ns == before


def test_scores_and_answers_of_a_cell_are_read_from_its_folder(tmp_path):
    study = Study(tmp_path, pair()[:1])
    assert not study.finished("big")
    states(study)
    assert study.finished("big")
    assert 0 <= study.metrics("big")["net"]["accuracy"].value <= 1
    said = study.said("big", "net")
    assert (len(said.validation), len(said.test)) == (24, 24)
    with pytest.raises(RunFolderError, match="delete"):
        study.metrics("small")


def test_a_cell_may_need_several(tmp_path):
    trials = [
        Trial(name="one", recipe=recipe, options={"width": 8}),
        Trial(name="two", recipe=recipe, options={"width": 8}, seed=1),
        Trial(name="both", recipe=recipe, needs={"teachers": ("one", "two")}),
    ]
    assert states(Study(tmp_path, trials))["both"] == "done"
    told = json.loads((tmp_path / "both" / "run.json").read_text())["options"]["teachers"]
    assert [each.split()[0] for each in told.split(", ")] == ["one", "two"]


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path):
    trials = [
        Trial(name="broken", recipe=recipe, options={"width": -1}),
        Trial(name="student", recipe=recipe, needs={"teacher": "broken"}),
        Trial(name="other", recipe=recipe),
    ]
    outcomes = {outcome.trial.name: outcome for outcome in Study(tmp_path, trials).run(CPU)}
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "broken": "failed",
        "student": "waiting",
        "other": "done",
    }
    assert "no width" in str(outcomes["broken"].error)
    assert "'broken', which is not ready" in str(outcomes["student"].error)


@pytest.mark.parametrize("change", ["options", "seed", "precision"])
def test_a_finished_cell_is_refused_where_it_would_be_another_run_now(tmp_path, change):
    states(Study(tmp_path, pair()[:1]))
    again = {
        "options": Trial(name="big", recipe=recipe, options={"width": 6}),
        "seed": Trial(name="big", recipe=recipe, options={"width": 8}, seed=3),
    }.get(change, pair()[0])
    options = RunOptions(device="cpu", precision="bf16") if change == "precision" else CPU
    (outcome,) = Study(tmp_path, [again]).run(options)
    assert outcome.state == "failed"
    assert isinstance(outcome.error, RunFolderError)
    assert change in str(outcome.error)


def test_a_cell_that_was_interrupted_is_refused_where_it_would_be_another_run_now(tmp_path):
    class Interrupting:
        @hookimpl
        def epoch_ended(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Study(tmp_path, pair()[:1]).run(CPU, callbacks=[Interrupting()]))
    changed = Trial(name="big", recipe=recipe, options={"width": 6})
    (outcome,) = Study(tmp_path, [changed]).run(CPU)
    assert outcome.state == "failed"
    assert "differs in its options" in str(outcome.error)
    assert states(Study(tmp_path, pair()[:1])) == {"big": "done"}


def test_a_student_waits_where_its_teacher_is_refused(tmp_path):
    states(Study(tmp_path, pair()[:1]))
    trials = [Trial(name="big", recipe=recipe, options={"width": 6}), pair()[1]]
    assert states(Study(tmp_path, trials)) == {"big": "failed", "small": "waiting"}


def test_students_of_a_teacher_that_was_trained_anew_are_refused(tmp_path):
    states(Study(tmp_path, pair()))
    for file in sorted((tmp_path / "big").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert states(Study(tmp_path, pair(seed=5))) == {"big": "done", "small": "failed"}


def test_a_recipe_that_is_no_function_of_a_file_is_told_by_its_options(tmp_path):
    def trial(width: int) -> Trial:
        return Trial(name="partial", recipe=partial(recipe, width=6), options={"width": width})

    assert states(Study(tmp_path, [trial(8)])) == {"partial": "done"}
    assert not (tmp_path / "partial" / "recipe.py").exists()
    assert states(Study(tmp_path, [trial(8)])) == {"partial": "skipped"}
    assert states(Study(tmp_path, [trial(4)])) == {"partial": "failed"}


def test_a_study_can_be_moved(tmp_path):
    states(Study(tmp_path / "here", pair()))
    (tmp_path / "here").rename(tmp_path / "there")
    assert states(Study(tmp_path / "there", pair())) == {"big": "skipped", "small": "skipped"}


def test_what_a_run_left_that_was_stopped_before_its_record_is_in_nobodys_way(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "recipe.py").write_text("half")
    (folder / ".run.json.x1").write_text("{")
    assert states(Study(tmp_path, pair()[:1])) == {"big": "done"}
    assert not (folder / ".run.json.x1").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "thesis.txt").write_text("mine")
    assert states(Study(tmp_path, pair()[:1])) == {"big": "failed"}
    assert (tmp_path / "big" / "thesis.txt").read_text() == "mine"


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunFolderError, match="another process"):
        states(Study(tmp_path, pair()))


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (lambda: [pair()[0], pair()[0]], "two cells"),
        (lambda: [replace(pair()[0], name="teacher_cache")], "holds recorded answers"),
        (lambda: pair()[1:], "needs 'big' before it"),
        (lambda: [Trial(name="a/b", recipe=recipe)], "a cell's name"),
    ],
)
def test_cells_that_make_no_study_are_refused(tmp_path, trials, said):
    with pytest.raises(RecipeError, match=said):
        Study(tmp_path, trials())


def test_a_killed_study_ends_in_the_same_bits(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(RECIPE)

    (tmp_path / "wait").touch()
    process = ForkedPython([str(script), "killed"], tmp_path)
    deadline = time.monotonic() + 90
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    (tmp_path / "wait").unlink()
    assert (tmp_path / "killed" / "big" / "1-net" / "state.pt").exists()
    for folder in ("killed", "whole"):
        done = run_python([str(script), folder], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["big", "done", "small", "done"]
    one, other = bits(tmp_path / "killed"), bits(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
