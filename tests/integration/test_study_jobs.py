"""Cells that are run at once give the bits of cells that are run in turn, and a process that dies costs one of them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from kdkit import RecipeError, RunOptions, Study, Trial, TrialResult, hookimpl
from kdkit.errors import CheckError, RunFolderError, WorkerError
from kdkit.plugins.recipe_file import load_file as load_python
from kdkit.plugins.recipe_file import read_recipe_file
from tests.helpers.processes import ForkedPython, run_python

CPU = RunOptions(device="cpu")

CELLS = '''
"""Two teachers, a student of both, and trials that go wrong; one waits in its third epoch where a file asks for it."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Trial, Match, Net, Recipe, RunOptions, Stage, Study, TorchData, Training, Truth
from kdkit.losses import SoftTargets


class Odd(Exception):
    """An error that cannot be made again from what it says."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Width(int):
    """An option of a class that only this file has."""


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 3))


def recipe(width=8, teachers=(), wrong=None, here=None):
    print("a recipe may print")
    if wrong == "odd":
        raise Odd("this", "that")
    if wrong == "check":
        return made(kdkit.Net("net", nn.Linear(5, 3)), Truth(nn.CrossEntropyLoss()))
    if wrong == "killed":
        os.kill(os.getpid(), 9)
    if wrong == "exit":
        sys.exit(3)
    if here is not None:
        here.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    objective = Truth(nn.CrossEntropyLoss())
    for place, folder in enumerate(teachers):
        master = Net(f"master{place}", net(8), weights=folder / "1-net" / "weights.safetensors")
        objective = 0.5 * objective + 0.5 * Match(master, SoftTargets())
    return made(Net("net", net(width)), objective)


def made(net, objective):
    return Recipe(
        data=TorchData(samples(24, 0), samples(12, 1), samples(12, 2)),
        schedule=[Stage({net: objective}, Training(epochs=4, batch_size=8))],
    )


class Waiting:
    def __init__(self, folder):
        self.folder = folder

    @kdkit.hookimpl
    def epoch_ended(self, event):
        if event.epoch == 2 and (self.folder / "wait").exists():
            (self.folder / f"waiting-{os.getpid()}").touch()
            time.sleep(60)


trials = [
    Trial(name="one", recipe=recipe, options={"width": Width(8)}),
    Trial(name="two", recipe=recipe, options={"width": Width(8)}, seed=1),
    Trial(name="both", recipe=recipe, options={"width": 4}, needs={"teachers": ("one", "two")}),
]
if __name__ == "__main__":
    callbacks = [Waiting(Path.cwd())]
    for outcome in Study(sys.argv[1], trials).run(RunOptions(device="cpu"), callbacks=callbacks, jobs=int(sys.argv[2])):
        print(outcome.trial.name, outcome.state, outcome.error or "", flush=True)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "cells_of_a_file.py"
    path.write_text(CELLS)
    return path


@pytest.fixture(scope="module")
def recipes(script):
    """The file as a module that no package holds."""
    yield load_python(script)
    sys.modules.pop("cells_of_a_file")
    sys.path.remove(str(script.parent))


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, script) -> Path:
    """The study run in one process, as figures should be."""
    folder = tmp_path_factory.mktemp("in_turn")
    done = run_python([str(script), str(folder), "1"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)}:{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def require_same_bits(one: Path, other: Path) -> None:
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    assert len(first) > 10
    assert all(torch.equal(first[key], second[key]) for key in first)


def wait_for(there: Callable[[], bool], process: ForkedPython | None = None) -> None:
    deadline = time.monotonic() + 90
    while not there():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_cells_at_once_give_the_bits_of_cells_in_turn(tmp_path, recipes, in_turn):
    outcomes = list(Study(tmp_path, recipes.trials).run(CPU, jobs=2))
    assert {outcome.trial.name: outcome.state for outcome in outcomes} == dict.fromkeys(("one", "two", "both"), "done")
    assert [each.trial for each in outcomes if each.trial.name == "one"] == [recipes.trials[0]]
    assert outcomes[-1].trial.name == "both"
    require_same_bits(tmp_path, in_turn)
    again = list(Study(tmp_path, recipes.trials).run(CPU, jobs=2))
    assert {outcome.state for outcome in again} == {"skipped"}


def test_what_goes_wrong_in_one_process_costs_no_other_cell(tmp_path, recipes):
    recipe = recipes.recipe

    def wrong(how: str) -> Trial:
        return Trial(name=how, recipe=recipe, options={"wrong": how})

    trials = [
        *map(wrong, ("killed", "exit", "odd", "check")),
        Trial(name="student", recipe=recipe, needs={"teachers": ("killed",)}),
        Trial(name="local", recipe=lambda: recipe(), options={}),
        Trial(name="good", recipe=recipe, options={"here": tmp_path / "here"}),
    ]
    outcomes = {outcome.trial.name: outcome for outcome in Study(tmp_path / "study", trials).run(CPU, jobs=2)}
    failed = dict.fromkeys(("killed", "exit", "odd", "check", "local"), "failed")
    assert {name: each.state for name, each in outcomes.items()} == {**failed, "student": "waiting", "good": "done"}
    errors = {name: each.error for name, each in outcomes.items()}
    assert isinstance(errors["killed"], WorkerError)
    assert "SIGKILL" in str(errors["killed"])
    assert "go on from its last epoch" in str(errors["killed"])
    assert "exit code 3" in str(errors["exit"])
    assert "this and that" in str(errors["odd"])
    assert isinstance(errors["check"], CheckError)
    assert any("Traceback" in note for note in errors["check"].__notes__)
    assert isinstance(errors["local"], RecipeError)
    assert "top of a file" in str(errors["local"])
    pid, threads = (tmp_path / "here").read_text().split()
    assert int(pid) != os.getpid()
    assert threads == "1"
    wait_for(lambda: not alive(int(pid)))


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_study_that_is_stopped_stops_its_processes_and_ends_in_the_same_bits(tmp_path, script, in_turn, signal_sent):
    command = [str(script), "study", "2"]
    (tmp_path / "wait").touch()
    process = ForkedPython(command, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("waiting-*"))) == 2, process)
    children = [int(path.name.split("-")[1]) for path in tmp_path.glob("waiting-*")]
    os.kill(process.pid, signal_sent)
    process.wait(30)
    wait_for(lambda: not any(map(alive, children)))
    assert all((tmp_path / "study" / name / "1-net" / "state.pt").exists() for name in ("one", "two"))
    (tmp_path / "wait").unlink()
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(["one", "done", "two", "done", "both", "done"])
    assert "a recipe may print" in done.stderr
    require_same_bits(tmp_path / "study", in_turn)


def outcomes_of_two_that_end_by(signal_sent: int, tmp_path: Path, recipes) -> list[TrialResult]:
    """Run two cells at once, and end the process of each by a signal."""
    (tmp_path / "wait").touch()
    study = Study(tmp_path / "study", recipes.trials[:2])

    def end_both() -> None:
        wait_for(lambda: len(list(tmp_path.glob("waiting-*"))) == 2)
        (tmp_path / "wait").unlink()
        for path in tmp_path.glob("waiting-*"):
            os.kill(int(path.name.split("-")[1]), signal_sent)

    thread = Thread(target=end_both)
    thread.start()
    outcomes = list(study.run(CPU, callbacks=[recipes.Waiting(tmp_path)], jobs=2))
    thread.join()
    return outcomes


@pytest.mark.slow
def test_processes_that_are_killed_leave_cells_to_go_on_with(tmp_path, recipes, in_turn):
    outcomes = outcomes_of_two_that_end_by(signal.SIGKILL, tmp_path, recipes)
    assert {outcome.state for outcome in outcomes} == {"failed"}
    assert {outcome.state for outcome in Study(tmp_path / "study", recipes.trials).run(CPU, jobs=2)} == {"done"}
    require_same_bits(tmp_path / "study", in_turn)


@pytest.mark.skipif(sys.platform != "linux", reason="signals without a name are Linux's")
def test_a_process_that_ends_by_a_signal_without_a_name_says_its_number(tmp_path, recipes):
    outcomes = outcomes_of_two_that_end_by(36, tmp_path, recipes)
    assert all("signal 36" in str(outcome.error) for outcome in outcomes)


def test_a_recipe_file_that_is_a_plugin_is_one_in_every_process(tmp_path, script):
    path = tmp_path / "with_a_hook.py"
    path.write_text(
        CELLS.replace("import kdkit\n", "import kdkit\nfrom kdkit import hookimpl, registry\n", 1).replace(
            "goal = Truth(nn.CrossEntropyLoss())", 'goal = Truth(shelf("losses")["mine"]())', 1
        )
        + "\n\n@hookimpl\ndef register_losses(register):\n    register('mine', nn.CrossEntropyLoss)\n"
    )
    module = read_recipe_file(path).module
    try:
        (outcome,) = Study(tmp_path / "study", module.trials[:1]).run(CPU, jobs=2)
        assert outcome.state == "done", outcome.error
    finally:
        sys.modules.pop("with_a_hook")
        sys.path.remove(str(tmp_path))


@pytest.mark.slow
def test_a_script_that_runs_its_study_as_it_is_read_is_told_what_to_do(tmp_path):
    script = tmp_path / "unguarded.py"
    plain = CELLS.replace('if __name__ == "__main__":', "if True:").replace("sys.argv[1]", '"study"')
    script.write_text(plain.replace("int(sys.argv[2])", "2"))
    done = run_python([str(script)], tmp_path)
    assert done.stdout.count("failed") == 2
    assert "if __name__ == '__main__'" in done.stdout


def test_a_watcher_that_cannot_be_copied_is_refused_before_anything_runs(tmp_path, recipes):
    class Mine:
        @hookimpl
        def epoch_ended(self, event): ...

    with pytest.raises(RecipeError, match="watcher Mine cannot be brought to another process"):
        list(Study(tmp_path, recipes.trials).run(CPU, callbacks=[Mine()], jobs=2))
    assert not list(tmp_path.glob("*/run.json"))


def test_two_studies_do_not_run_jobs_in_one_folder(tmp_path, recipes):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunFolderError, match="another process"):
        list(Study(tmp_path, recipes.trials).run(CPU, jobs=2))


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2"])
def test_a_number_of_jobs_that_is_none_is_refused(tmp_path, recipes, jobs):
    with pytest.raises(RecipeError, match="whole number"):
        list(Study(tmp_path, recipes.trials).run(CPU, jobs=jobs))
