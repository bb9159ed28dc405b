"""Tests of studies: trials run once, resume bit for bit after a kill, and a trial that fails stops no other."""

import json
import linecache
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kdkit import Net, Parallel, Recipe, RecipeError, RunOptions, Stage, Study, Sweep, Trial, hookimpl
from kdkit.errors import RunFolderError
from kdkit.losses import SoftTargets
from kdkit.plugins.recipe_file import load_file
from tests.helpers.processes import ForkedPython, run_python, wait_until
from tests.helpers.stages import Small, data, last_checkpoint, load_tensors, training, truth

CPU = RunOptions(device="cpu")

SCRIPT = '''
"""A study of a net and a student of it. A trial pauses in its third epoch if there is a file "wait"."""

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


class Pause:
    @kdkit.hookimpl
    def epoch_ended(self, event):
        if Path("wait").exists() and event.epoch == 2:
            Path("waiting").touch()
            time.sleep(60)  # until it is killed


trials = [
    Trial(name="big", recipe=recipe, options={"width": 8}, seed=1),
    Trial(name="small", recipe=recipe, options={"width": 4}, needs={"teacher": "big"}, seed=1),
]
if __name__ == "__main__":
    for result in Study(sys.argv[1], trials).run(RunOptions(device="cpu"), callbacks=[Pause()]):
        print(result.trial.name, result.state, result.error or "")
'''


def recipe(width: int = 4, teacher: Path | None = None, teachers: tuple[Path, ...] = ()) -> Recipe:
    """A net alone, or a student of the nets of other trials."""
    if width < 0:
        raise ValueError("no width")
    net = Net("net", Small(width))
    folders = (*teachers, *([teacher] if teacher else []))
    masters = [
        Net(f"master{index}", Small(8), weights=folder / "1-net" / "weights.safetensors")
        for index, folder in enumerate(folders)
    ]
    one_epoch = training(epochs=1)
    if not masters:
        return Recipe(data=data(), schedule=[Stage({net: truth()}, one_epoch)])
    schedule = Parallel(*masters, net, truth=truth(), kd_loss=SoftTargets(), training=one_epoch)
    return Recipe(data=data(), schedule=schedule)


def other_recipe(width: int) -> Recipe:
    """Another recipe in the same file."""
    return recipe(width)


def with_layers(layers: object) -> Recipe:
    return recipe()


def eight() -> int:
    return 8


def of_called_width(width: Callable[[], int]) -> Recipe:
    return recipe(width())


def pair(width: int = 4, **teacher: int) -> list[Trial]:
    """Return a teacher "big", with options of its Trial, and its student "small"."""
    return [
        Trial(name="big", recipe=recipe, options={"width": 8}, **teacher),
        Trial(name="small", recipe=recipe, options={"width": width}, needs={"teacher": "big"}),
    ]


def run_states(study: Study, options: RunOptions = CPU) -> dict[str, str]:
    """Run a study and return the state of each trial."""
    return {result.trial.name: result.state for result in study.run(options)}


def test_a_finished_trial_is_skipped_and_a_new_one_is_run(tmp_path):
    assert run_states(Study(tmp_path, pair()[:1])) == {"big": "finished"}
    before = (tmp_path / "big" / "metrics.json").stat().st_mtime_ns  # a second run would write the file again
    assert run_states(Study(tmp_path, pair())) == {"big": "skipped", "small": "finished"}
    assert (tmp_path / "big" / "metrics.json").stat().st_mtime_ns == before


def test_a_study_whose_results_are_not_read_runs_no_trial_and_warns(tmp_path):
    study = Study(tmp_path, pair()[:1])
    with pytest.warns(RuntimeWarning, match="no trial was run, because the results of run.* were not read") as warned:
        study.run(CPU)
    assert [warning.filename for warning in warned] == [__file__]
    assert not study.finished("big")
    sweep = Sweep(recipe, {"width": [4, 8]}, folder=tmp_path / "sweep", seeds=1)
    with pytest.warns(RuntimeWarning, match="no trial was run"):
        sweep.run(CPU)


def test_metrics_and_predictions_of_a_trial_are_read_from_its_folder(tmp_path):
    study = Study(tmp_path, pair()[:1])
    assert not study.finished("big")
    run_states(study)
    assert study.finished("big")
    assert 0 <= study.metrics("big")["net"]["accuracy"].value <= 1
    predictions = study.predictions("big", "net")
    assert (len(predictions.validation), len(predictions.test)) == (24, 24)
    with pytest.raises(RunFolderError, match=r"trial .small. was not run in"):
        study.metrics("small")


def test_a_trial_whose_network_an_earlier_trial_trained_fails(tmp_path):
    module = Small(4)

    def shared(lr: float) -> Recipe:
        return Recipe(data=data(), schedule=[Stage({Net("net", module): truth()}, training(epochs=1))])

    trials = [Trial(name=f"lr{lr}", recipe=shared, options={"lr": lr}) for lr in (0.1, 0.2)]
    first, second = Study(tmp_path, trials).run(CPU)
    assert first.state == "finished"
    assert "create networks inside the recipe function" in str(second.error)


def test_a_trial_may_need_several_trials(tmp_path):
    trials = [
        Trial(name="one", recipe=recipe, options={"width": 8}),
        Trial(name="two", recipe=recipe, options={"width": 8}, seed=1),
        Trial(name="both", recipe=recipe, needs={"teachers": ("one", "two")}),
    ]
    assert run_states(Study(tmp_path, trials))["both"] == "finished"
    recorded = json.loads((tmp_path / "both" / "run.json").read_text())["options"]["teachers"]
    assert [need.split()[0] for need in recorded.split(", ")] == ["one", "two"]  # each is a name and a digest


def test_a_failed_trial_is_reported_and_the_others_run(tmp_path):
    trials = [
        Trial(name="broken", recipe=recipe, options={"width": -1}),
        Trial(name="student", recipe=recipe, needs={"teacher": "broken"}),
        Trial(name="other", recipe=recipe),
    ]
    results = {result.trial.name: result for result in Study(tmp_path, trials).run(CPU)}
    assert {name: result.state for name, result in results.items()} == {
        "broken": "failed",
        "student": "blocked",
        "other": "finished",
    }
    assert "no width" in str(results["broken"].error)
    assert "'broken', which failed" in str(results["student"].error)


@pytest.mark.parametrize("change", ["option width", "seed", "precision", "function"])
def test_a_finished_trial_fails_if_it_would_be_another_run_now(tmp_path, change):
    run_states(Study(tmp_path, pair()[:1]))
    changed = {
        "option width": Trial(name="big", recipe=recipe, options={"width": 6}),
        "seed": Trial(name="big", recipe=recipe, options={"width": 8}, seed=3),
        "function": Trial(name="big", recipe=other_recipe, options={"width": 8}),
    }.get(change, pair()[0])
    options = RunOptions(device="cpu", precision="bf16") if change == "precision" else CPU
    (result,) = Study(tmp_path, [changed]).run(options)
    assert result.state == "failed"
    assert isinstance(result.error, RunFolderError)
    assert change in str(result.error)


def test_an_interrupted_trial_fails_if_it_would_be_another_run_now(tmp_path):
    class Interrupt:
        @hookimpl
        def epoch_ended(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Study(tmp_path, pair()[:1]).run(CPU, callbacks=[Interrupt()]))
    changed = Trial(name="big", recipe=recipe, options={"width": 6})
    (result,) = Study(tmp_path, [changed]).run(CPU)  # has no trial.json yet, so `kdkit.run` compares it
    assert result.state == "failed"
    assert "differs in its options" in str(result.error)
    assert run_states(Study(tmp_path, pair()[:1])) == {"big": "finished"}


def test_a_student_is_blocked_if_its_teacher_is_refused(tmp_path):
    run_states(Study(tmp_path, pair()[:1]))
    trials = [Trial(name="big", recipe=recipe, options={"width": 6}), pair()[1]]
    assert run_states(Study(tmp_path, trials)) == {"big": "failed", "small": "blocked"}


def test_a_study_of_some_stages_only_is_refused(tmp_path):
    options = RunOptions(only=("main",), out=tmp_path)
    with pytest.raises(RecipeError, match="a study trains all stages of its trials"):
        next(Study(tmp_path, pair()).run(options))


def test_a_student_of_a_retrained_teacher_fails(tmp_path):
    run_states(Study(tmp_path, pair()))
    # In reverse order, so that each folder is empty when it is removed.
    for file in sorted((tmp_path / "big").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    # Another seed gives other weights, whose digest is not the one in the student's run.json.
    assert run_states(Study(tmp_path, pair(seed=5))) == {"big": "finished", "small": "failed"}


def test_a_recipe_without_a_file_is_compared_by_its_options(tmp_path):
    class Made:
        def __call__(self, width: int) -> Recipe:
            return recipe(width)

    def trial(width: int) -> Trial:
        # An object has no source file, unlike a function. An option of the trial replaces an argument of a partial.
        return Trial(name="object", recipe=partial(Made(), width=6), options={"width": width})

    assert run_states(Study(tmp_path, [trial(8)])) == {"object": "finished"}
    assert not (tmp_path / "object" / "recipe.py").exists()
    assert run_states(Study(tmp_path, [trial(8)])) == {"object": "skipped"}
    assert run_states(Study(tmp_path, [trial(4)])) == {"object": "failed"}
    alone = Trial(name="object", recipe=partial(Made(), width=8))
    assert run_states(Study(tmp_path, [alone])) == {"object": "skipped"}
    alone = Trial(name="object", recipe=partial(Made(), width=6))
    assert run_states(Study(tmp_path, [alone])) == {"object": "failed"}


def test_an_option_that_is_a_function_is_compared_without_its_address(tmp_path):
    def trial(width: object) -> Trial:
        return Trial(name="called", recipe=of_called_width, options={"width": width})

    assert run_states(Study(tmp_path, [trial(lambda: 8)])) == {"called": "finished"}
    # Another object, as in a new process.
    assert run_states(Study(tmp_path, [trial(lambda: 8)])) == {"called": "skipped"}
    assert run_states(Study(tmp_path, [trial(eight)])) == {"called": "failed"}


def test_a_set_among_the_options_is_recorded_in_order(tmp_path):
    names = {"e", "a", "d", "c", "b"}  # in another order in each process
    study = Study(tmp_path, [Trial(name="set", recipe=with_layers, options={"layers": names})])
    assert run_states(study) == {"set": "finished"}
    recorded = json.loads((tmp_path / "set" / "run.json").read_text())["options"]
    assert recorded == {"layers": "{'a', 'b', 'c', 'd', 'e'}"}


@pytest.mark.parametrize(("before", "after"), [([8, 2], [8, 4]), (Path("a"), Path("b")), (pair, eight)])
def test_a_partial_is_compared_by_its_arguments(tmp_path, before, after):
    def trial(layers: object) -> Trial:
        return Trial(name="partial", recipe=partial(with_layers, layers))

    assert run_states(Study(tmp_path, [trial(before)])) == {"partial": "finished"}
    assert run_states(Study(tmp_path, [trial(before)])) == {"partial": "skipped"}
    assert run_states(Study(tmp_path, [trial(after)])) == {"partial": "failed"}


class MadeOf:
    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self) -> Recipe:
        return recipe(self.width)


def closure_over(width: int):
    return lambda: recipe(width)


@pytest.mark.parametrize("made", [closure_over, MadeOf, lambda width: MadeOf(width).__call__])
def test_a_closure_and_an_object_are_compared_by_their_values(tmp_path, made):
    def trial(width: int) -> Trial:
        return Trial(name="made", recipe=made(width))

    assert run_states(Study(tmp_path, [trial(8)])) == {"made": "finished"}
    assert run_states(Study(tmp_path, [trial(8)])) == {"made": "skipped"}
    (result,) = Study(tmp_path, [trial(4)]).run(CPU)
    assert "its option width: it was 8, and now it is 4" in str(result.error)


def test_a_partial_is_compared_by_the_file_of_its_function(tmp_path):
    file, study = tmp_path / "mine.py", tmp_path / "study"
    file.write_text(f"from {__name__} import recipe as made\n\n\ndef recipe(width):\n    return made(width)\n")
    trial = Trial(name="partial", recipe=partial(load_file(file).recipe, width=8))
    assert run_states(Study(study, [trial])) == {"partial": "finished"}
    assert (study / "partial" / "recipe.py").read_bytes() == file.read_bytes()
    file.write_text(file.read_text().replace("made(width)", "made(2 * width)"))
    (result,) = Study(study, [trial]).run(CPU)
    assert "the code of its recipe, which has changed" in str(result.error)


def test_a_recipe_of_a_notebook_is_compared_by_its_code(tmp_path):
    source = f"from {__name__} import recipe as made\nWIDTH = 8\ndef recipe():\n    return made(WIDTH)\n"
    states = []
    for number, cell in enumerate((source, source, source.replace("= 8", "= 4"))):
        linecache.cache[f"<cell {number}>"] = (len(cell), None, cell.splitlines(keepends=True), "")
        exec(compile(cell, f"<cell {number}>", "exec"), scope := {"__name__": "__main__"})
        states.append(run_states(Study(tmp_path, [Trial(name="trial", recipe=scope["recipe"])]))["trial"])
    assert states == ["finished", "skipped", "failed"]


def test_results_of_a_study_that_was_not_iterated_over_are_missing_with_the_remedy(tmp_path):
    study = Study(tmp_path, pair())
    with pytest.warns(RuntimeWarning, match="no trial was run"):
        study.run(CPU)
    with pytest.raises(RunFolderError, match=r"trial 'big' was not run in .*: for result in study\.run\(\): \.\.\."):
        study.metrics("big")
    with pytest.raises(RunFolderError, match="did you mean 'small'"):
        study.predictions("smal", "net")


def test_wrong_arguments_of_a_study_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"'big' must be a function that returns a Recipe, .*; got Recipe"):
        Trial(name="big", recipe=recipe())
    with pytest.raises(RecipeError, match=r"must be RunOptions, .*; got 2"):
        next(Study(tmp_path, pair()).run(2))


@pytest.mark.parametrize("arguments", [([], "study"), ("study", ["trial"]), ("study", None)])
def test_a_study_of_something_else_than_trials_is_refused(arguments):
    with pytest.raises(RecipeError, match=r"a study has a folder and a list of trials, .*; got Study\("):
        Study(*arguments)


def test_a_study_can_be_moved(tmp_path):
    run_states(Study(tmp_path / "old", pair()))
    (tmp_path / "old").rename(tmp_path / "new")
    assert run_states(Study(tmp_path / "new", pair())) == {"big": "skipped", "small": "skipped"}


def test_files_of_a_run_that_stopped_before_its_record_do_not_prevent_a_new_run(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".run.json.ab12_x9z.tmp").write_text("{")
    assert run_states(Study(tmp_path, pair()[:1])) == {"big": "finished"}
    assert not (folder / ".run.json.ab12_x9z.tmp").exists()


def test_a_folder_with_other_files_is_left_unchanged(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "thesis.txt").write_text("mine")
    assert run_states(Study(tmp_path, pair()[:1])) == {"big": "failed"}
    assert (tmp_path / "big" / "thesis.txt").read_text() == "mine"


def test_a_trial_that_cannot_be_marked_as_finished_fails_alone(tmp_path):
    run_states(Study(tmp_path, pair()[:1]))
    (tmp_path / "big" / "trial.json").unlink()
    (tmp_path / "big" / "trial.json").mkdir()
    assert run_states(Study(tmp_path, [*pair()[:1], Trial(name="other", recipe=recipe)])) == {
        "big": "failed",
        "other": "finished",
    }


def test_two_processes_do_not_run_a_study_in_one_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunFolderError, match="another process"):
        run_states(Study(tmp_path, pair()))
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"file cannot be written: .*; choose another folder"):
        run_states(Study(tmp_path / "file", pair()))


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (lambda: [pair()[0], pair()[0]], "two trials"),
        (lambda: [pair()[0], replace(pair()[0], name=pair()[0].name.upper())], "two trials"),
        (lambda: [replace(pair()[0], name="teacher_cache")], "folder of the teacher cache"),
        (lambda: pair()[1:], "needs 'big' before it"),
        (lambda: [Trial(name="a/b", recipe=recipe)], "the name of a trial"),
        (lambda: [Trial(name="..", recipe=recipe)], "the name of a trial"),
        (lambda: [Trial(name=".lock", recipe=recipe)], "the name of a trial"),
        (lambda: [Trial(name="alpha=1.", recipe=recipe)], "the name of a trial"),
    ],
)
def test_trials_that_do_not_fit_together_are_refused(tmp_path, trials, message):
    with pytest.raises(RecipeError, match=message):
        Study(tmp_path, trials())


def test_a_killed_study_resumes_bit_for_bit(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(SCRIPT)

    (tmp_path / "wait").touch()
    process = ForkedPython([str(script), "killed"], tmp_path)
    wait_until((tmp_path / "waiting").exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    (tmp_path / "wait").unlink()
    assert last_checkpoint(tmp_path / "killed" / "big" / "1-net")
    for folder in ("killed", "whole"):
        done = run_python([str(script), folder], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["big", "finished", "small", "finished"]
    killed, whole = load_tensors(tmp_path / "killed"), load_tensors(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[key], whole[key]) for key in killed)
