"""Tests of studies in several processes: the same bits as in one, and a process that dies costs one trial only."""

import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from kdkit import RecipeError, RunOptions, Study, Trial, TrialResult, hookimpl
from kdkit.engine.storage.run_folder import read_record
from kdkit.errors import CheckError, RunFolderError, WorkerError
from kdkit.plugins.recipe_file import load_file as load_python
from kdkit.plugins.recipe_file import read_recipe_file
from tests.helpers.processes import ForkedPython, run_python, wait_until
from tests.helpers.stages import last_checkpoint, load_tensors

CPU = RunOptions(device="cpu")

SCRIPT = '''
"""Two teachers, a student of both, and a recipe that fails on request. A trial pauses if there is a file "wait"."""

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


class TwoArguments(Exception):
    """An error that pickle cannot recreate: its __init__ takes two arguments and passes on one."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Width(int):
    """An option of a class that only this file defines."""


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def module(width):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 3))


def recipe(width=8, teachers=(), failure=None, report=None):
    print("a recipe may print")
    if failure == "unpicklable":
        raise TwoArguments("this", "that")
    if failure == "check":
        return train(kdkit.Net("net", nn.Linear(5, 3)), Truth(nn.CrossEntropyLoss()))
    if failure == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory.")
    if failure == "kernel":
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)
    if failure == "killed":
        os.kill(os.getpid(), 9)
    if failure == "exit":
        os._exit(3)
    if report is not None:
        report.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    objective = Truth(nn.CrossEntropyLoss())
    for index, folder in enumerate(teachers):
        master = Net(f"master{index}", module(8), weights=folder / "1-net" / "weights.safetensors")
        objective = 0.5 * objective + 0.5 * Match(master, SoftTargets())
    return train(Net("net", module(width)), objective)


def train(net, objective):
    return Recipe(
        data=TorchData(samples(24, 0), samples(12, 1), samples(12, 2)),
        schedule=[Stage({net: objective}, Training(epochs=4, batch_size=8))],
    )


class Pause:
    def __init__(self, folder):
        self.folder = folder

    @kdkit.hookimpl
    def epoch_ended(self, event):
        if event.epoch == 2 and (self.folder / "wait").exists():
            (self.folder / f"waiting-{os.getpid()}").touch()
            while (self.folder / "wait").exists():
                time.sleep(0.02)


trials = [
    Trial(name="one", recipe=recipe, options={"width": Width(8)}),
    Trial(name="two", recipe=recipe, options={"width": Width(8)}, seed=1),
    Trial(name="both", recipe=recipe, options={"width": 4}, needs={"teachers": ("one", "two")}),
]
if __name__ == "__main__":
    callbacks = [Pause(Path.cwd())]
    for result in Study(sys.argv[1], trials).run(RunOptions(device="cpu"), callbacks=callbacks, jobs=int(sys.argv[2])):
        print(result.trial.name, result.state, result.error or "", flush=True)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "trials_of_a_script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def recipes(script):
    """The script as a module that belongs to no package."""
    yield load_python(script)
    sys.modules.pop("trials_of_a_script")
    sys.path.remove(str(script.parent))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, script) -> Path:
    """The folder of the study that was run in one process."""
    folder = tmp_path_factory.mktemp("reference")
    done = run_python([str(script), str(folder), "1"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def require_same_bits(first: Path, second: Path) -> None:
    """Assert that two studies saved equal tensors."""
    tensors, expected = load_tensors(first), load_tensors(second)
    assert tensors.keys() == expected.keys()
    assert len(tensors) > 10
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing, but fails if there is no such process
    except ProcessLookupError:
        return False
    return True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trials_are_spread_over_the_gpus(tmp_path, recipes):
    results = list(Study(tmp_path, recipes.trials).run(RunOptions(), jobs=2))
    assert {result.state for result in results} == {"finished"}
    used = {read_record(tmp_path / name)["device"] for name in ("one", "two")}
    assert used == {f"cuda:{index}" for index in range(min(2, torch.cuda.device_count()))}


@pytest.fixture(scope="module")
def study(tmp_path_factory, recipes):
    """A study in two processes, of trials that fail and of those of the script: its folder, results and processes."""
    folder = tmp_path_factory.mktemp("study")
    one, two, both = recipes.trials
    failures = ("unpicklable", "check", "memory", "exit", "killed")
    trials = [
        *(Trial(name=failure, recipe=recipes.recipe, options={"failure": failure}) for failure in failures),
        Trial(name="student", recipe=recipes.recipe, needs={"teachers": ("killed",)}),
        Trial(name="local", recipe=lambda: recipes.recipe(), options={}),
        replace(one, options={**one.options, "report": folder / "report"}),
        two,
        both,
    ]
    results = {result.trial.name: result for result in Study(folder / "trials", trials).run(CPU, jobs=2)}
    return SimpleNamespace(folder=folder / "trials", trials=trials, results=results, report=folder / "report")


def test_trials_in_two_processes_give_the_bits_of_trials_in_one(study, reference):
    require_same_bits(study.folder, reference)


def test_a_trial_that_fails_stops_only_those_that_need_it(study):
    states = {name: result.state for name, result in study.results.items()}
    failed = dict.fromkeys(("killed", "exit", "unpicklable", "check", "memory", "local"), "failed")
    assert states == {**failed, "student": "blocked", **dict.fromkeys(("one", "two", "both"), "finished")}
    assert [name for name, state in states.items() if state == "finished"][-1] == "both"  # which needs the others
    assert [result.trial for result in study.results.values() if result.trial.name == "one"] == [study.trials[-3]]


def test_trials_that_are_finished_are_skipped(study):
    results = Study(study.folder, study.trials[-3:]).run(CPU, jobs=2)
    assert {result.state for result in results} == {"skipped"}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("killed", WorkerError, r"SIGKILL(.|\n)*resume from its last checkpoint"),
        ("exit", WorkerError, "exit code 3"),
        ("unpicklable", Exception, "this and that"),
        ("check", CheckError, ""),
        ("memory", Exception, "Up to 2 jobs may share this memory at the same time"),
        ("local", RecipeError, "top level of a file"),
    ],
)
def test_an_error_in_a_process_is_that_of_its_trial(name, kind, message, study):
    error = study.results[name].error
    assert isinstance(error, kind)
    assert re.search(message, str(error))


def test_an_error_in_a_process_has_the_traceback_as_a_note(study):
    assert any("Traceback" in note for note in study.results["check"].error.__notes__)


def test_a_process_has_the_threads_of_its_share_and_ends_with_the_study(study):
    pid, threads = study.report.read_text().split()
    assert int(pid) != os.getpid()
    assert threads == "1"  # of OMP_NUM_THREADS in conftest.py
    wait_until(lambda: not is_alive(int(pid)))


@pytest.mark.slow
@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_stops_its_processes_and_resumes_bit_for_bit(tmp_path, script, reference, signal_sent):
    command = [str(script), "study", "2"]
    (tmp_path / "wait").touch()
    process = ForkedPython(command, tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("waiting-*"))) == 2, process)
    children = [int(path.name.split("-")[1]) for path in tmp_path.glob("waiting-*")]
    os.kill(process.pid, signal_sent)
    if signal_sent != signal.SIGKILL:
        time.sleep(0.5)  # the parent then ends its children by SIGTERM, after their step
        (tmp_path / "wait").unlink()
    process.wait(30)
    wait_until(lambda: not any(map(is_alive, children)))
    step = 6 if signal_sent == signal.SIGKILL else 9  # the signals that a process can handle wait for a checkpoint
    for name in ("one", "two"):
        assert last_checkpoint(tmp_path / "study" / name / "1-net")
        assert (tmp_path / "study" / name / "1-net" / f"checkpoint-{step}.safetensors").exists()
    (tmp_path / "wait").unlink(missing_ok=True)
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(["one", "finished", "two", "finished", "both", "finished"])
    assert "a recipe may print" in done.stderr  # not in stdout, which carries the results of trials
    require_same_bits(tmp_path / "study", reference)


def run_two_and_signal_both(signal_sent: int, tmp_path: Path, recipes) -> list[TrialResult]:
    """Run two trials at once, send a signal to both processes, and return the results."""
    (tmp_path / "wait").touch()
    study = Study(tmp_path / "study", recipes.trials[:2])

    def signal_both() -> None:
        wait_until(lambda: len(list(tmp_path.glob("waiting-*"))) == 2)
        (tmp_path / "wait").unlink()
        for path in tmp_path.glob("waiting-*"):
            os.kill(int(path.name.split("-")[1]), signal_sent)

    thread = Thread(target=signal_both)
    thread.start()
    results = list(study.run(CPU, callbacks=[recipes.Pause(tmp_path)], jobs=2))
    thread.join()
    return results


@pytest.mark.slow
def test_trials_of_killed_processes_can_be_resumed(tmp_path, recipes, reference):
    results = run_two_and_signal_both(signal.SIGKILL, tmp_path, recipes)
    assert {result.state for result in results} == {"failed"}
    assert {result.state for result in Study(tmp_path / "study", recipes.trials).run(CPU, jobs=2)} == {"finished"}
    require_same_bits(tmp_path / "study", reference)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has signals without a name")
@pytest.mark.slow
def test_after_an_error_of_a_kernel_another_process_runs_the_other_trials(tmp_path, recipes):
    trials = [
        Trial(name="memory", recipe=recipes.recipe, options={"failure": "memory"}),
        Trial(name="before", recipe=recipes.recipe, options={"report": tmp_path / "before.txt"}),
        Trial(name="kernel", recipe=recipes.recipe, options={"failure": "kernel"}),
        Trial(name="after", recipe=recipes.recipe, options={"report": tmp_path / "after.txt"}),
        Trial(name="local", recipe=lambda: recipes.recipe(), options={}),
    ]
    with pytest.warns(UserWarning, match="a kernel failed in trial 'kernel'.*a child process runs the other trials"):
        results = {result.trial.name: result for result in Study(tmp_path / "study", trials).run(CPU)}
    assert {name: result.state for name, result in results.items()} == {
        "memory": "failed", "before": "finished", "kernel": "failed", "after": "finished", "local": "failed"
    }  # fmt: skip
    pids = [int((tmp_path / f"{name}.txt").read_text().split()[0]) for name in ("before", "after")]
    assert pids[0] == os.getpid() != pids[1]
    assert not is_alive(pids[1])
    message = str(results["local"].error)
    assert "no other process can run this trial" in message
    assert "top level of a file" in message


@pytest.mark.slow
def test_the_error_after_a_signal_without_a_name_has_its_number(tmp_path, recipes):
    # A real-time signal, whose default action ends the process.
    results = run_two_and_signal_both(36, tmp_path, recipes)
    assert all("signal 36" in str(result.error) for result in results)


@pytest.mark.slow
def test_a_recipe_file_with_a_hook_is_a_plugin_in_every_process(tmp_path, script):
    path = tmp_path / "with_a_hook.py"
    loss, registered = "objective = Truth(nn.CrossEntropyLoss())", 'objective = Truth(registry("losses")["mine"]())'
    assert SCRIPT.count(loss) == 1
    path.write_text(
        SCRIPT.replace("import kdkit\n", "import kdkit\nfrom kdkit import hookimpl, registry\n", 1).replace(
            loss, registered, 1
        )
        + "\n\n@hookimpl\ndef register_losses(register):\n    register('mine', nn.CrossEntropyLoss)\n"
    )
    module = read_recipe_file(path).module
    try:
        (result,) = Study(tmp_path / "study", module.trials[:1]).run(CPU, jobs=2)
        assert result.state == "finished", result.error
    finally:
        sys.modules.pop("with_a_hook")
        sys.path.remove(str(tmp_path))


@pytest.mark.slow
def test_a_script_that_runs_its_study_on_import_fails_with_advice(tmp_path):
    script = tmp_path / "unguarded.py"
    # Each child imports the script to find the recipe, and must not run the study again.
    unguarded = SCRIPT.replace('if __name__ == "__main__":', "if True:").replace("sys.argv[1]", '"study"')
    script.write_text(unguarded.replace("int(sys.argv[2])", "2"))
    done = run_python([str(script)], tmp_path)
    states = dict(line.split()[:2] for line in done.stdout.splitlines())
    assert states == {"one": "failed", "two": "failed", "both": "blocked"}
    assert "if __name__ == '__main__'" in done.stdout


def test_a_callback_that_cannot_be_pickled_is_refused_before_anything_runs(tmp_path, recipes):
    class Local:
        @hookimpl
        def epoch_ended(self, event): ...

    with pytest.raises(RecipeError, match="callback Local cannot be sent to another process"):
        list(Study(tmp_path, recipes.trials).run(CPU, callbacks=[Local()], jobs=2))
    assert not list(tmp_path.glob("*/run.json"))


def test_two_studies_do_not_run_jobs_in_one_folder(tmp_path, recipes):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunFolderError, match="another process"):
        list(Study(tmp_path, recipes.trials).run(CPU, jobs=2))


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2"])
def test_a_number_of_jobs_that_is_not_valid_is_refused(tmp_path, recipes, jobs):
    with pytest.raises(RecipeError, match="must be an integer of at least 1"):
        list(Study(tmp_path, recipes.trials).run(CPU, jobs=jobs))
