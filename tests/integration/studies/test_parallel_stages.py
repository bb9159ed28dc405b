"""Tests of `kdkit run --jobs`: independent stages train in parallel, with the bits of a sequential run."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from kdkit import (
    BuildContext,
    Match,
    MultiLevel,
    Net,
    Parallel,
    RecipeError,
    RunOptions,
    Stage,
    Tap,
    TeacherSession,
    Training,
    Truth,
)
from kdkit.losses import Hint, SoftTargets
from kdkit.recipe.recipe import stage_dependencies
from kdkit.study import parallel_stages
from kdkit.study.parallel_stages import _PendingStages
from tests.helpers.processes import run_python
from tests.helpers.stages import last_checkpoint

RECIPE = '''
"""Two teachers that do not depend on each other, and a student of both."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


class Fatal(nn.Module):
    "Kills its process once, in the second epoch, if there is a file kill, in which it counts batches."

    def forward(self, inputs):
        counter = Path("kill")
        if self.training and len(inputs) == 8 and counter.exists():
            counter.write_text(counter.read_text() + ".")
            if len(counter.read_text()) == 6:
                while not list(Path("two/run/2-second").glob("checkpoint-*")):
                    time.sleep(0.02)  # a thread writes the one of the first epoch
                os.kill(os.getpid(), signal.SIGKILL)
        return inputs


def samples(count):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(rate: float = 0.1) -> Recipe:
    nets = [Net("first", nn.Linear(6, 3)), Net("second", nn.Sequential(Fatal(), nn.Dropout(0.1), nn.Linear(6, 3)))]
    return Recipe(
        data=TorchData(samples(32), samples(9), classes=("a", "b", "c")),
        schedule=Parallel(
            *nets,
            Net("student", nn.Linear(6, 3)),
            truth=Truth(nn.CrossEntropyLoss()),
            kd_loss=SoftTargets(),
            training=Training(epochs=3, batch_size=8),
        ),
    )
'''


def read_files(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder that must be equal in two equal runs."""
    files: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".py") or path.name in ("metrics.json", "stage.json")
    }
    for name in [name for name in files if name.endswith("stage.json")]:
        files[name] = json.loads(files[name])
        # Both depend on the seconds in the history.
        del files[name]["checksum"], files[name]["history"]["sha256"]
    return files


@pytest.mark.slow
def test_two_teachers_train_in_two_processes_to_the_same_bits(kdkit_process, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    sequential = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "one/run", "--quiet")
    parallel = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "two/run", "--jobs", "2")
    assert (sequential.code, parallel.code) == (0, 0), parallel.err
    for name in ("first", "second"):
        assert f"stage {name}: training in a child process" in parallel.err
        assert f"stage {name}: finished" in parallel.err
    # The student needs both, so it trains in the main process, where the console shows it.
    assert "stage student" not in parallel.err
    assert "3. student: 3 epochs" in parallel.out
    assert read_files(tmp_path / "one" / "run") == read_files(tmp_path / "two" / "run")


CALLBACK = """
import kdkit

@kdkit.hookimpl
def run_ended(event):
    with open("ended", "a") as file:
        print(type(event.error).__name__, sorted(event.metrics), file=file)
"""


def test_a_killed_process_is_reported_and_its_stage_can_be_resumed(kdkit_process, tmp_path):
    """With a baseline, and a callback that is called once when a run ends, in no child process."""
    (tmp_path / "mine.py").write_text(RECIPE + CALLBACK)
    sequential = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "one/run", "--quiet", "--baseline")
    (tmp_path / "kill").touch()
    command = ("run", "mine.py", "--device", "cpu", "--out", "two/run", "--jobs", "2", "--baseline")
    killed = kdkit_process(*command)
    assert killed.code == 2
    assert "error: stage 'second': its process was ended by SIGKILL" in killed.err
    assert "Traceback" not in killed.err
    state = last_checkpoint(tmp_path / "two" / "run" / "2-second")
    assert state is not None
    assert len(state["history"]) == 1  # of the first epoch; the process died in the second
    resumed = kdkit_process(*command, "--resume")
    assert (sequential.code, resumed.code) == (0, 0), resumed.err
    whole = "NoneType ['first', 'second', 'student', 'student-alone']"
    assert (tmp_path / "ended").read_text().splitlines() == [whole, whole]
    assert read_files(tmp_path / "one" / "run") == read_files(tmp_path / "two" / "run")


def test_an_invalid_parallel_run_is_refused_before_anything_is_written(kdkit_here, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(RECIPE)
    wrong_option = kdkit_here("run", "mine.py", "--rate", "fast", "--out", "run", "--jobs", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    under_torchrun = kdkit_here("run", "mine.py", "--out", "run", "--jobs", "2")
    assert (wrong_option.code, under_torchrun.code) == (2, 2)
    assert "leave out --jobs, or torchrun" in under_torchrun.err
    assert not (tmp_path / "run").exists()


def test_a_second_command_is_refused_as_soon_as_the_first_one_has_created_the_run_folder(
    kdkit_here, tmp_path, monkeypatch
):
    """Also before any stage is trained, when the first one looks for the stages that are finished."""
    (tmp_path / "mine.py").write_text(RECIPE)
    command = ["run", "mine.py", "--device", "cpu", "--out", "run", "--quiet"]
    second = []

    def pending(stages, finished):
        second.append(run_python(["-m", "kdkit", *command, "--jobs", "2", "--resume"], tmp_path))
        return _PendingStages(stages, {"first", "second"})  # so that the student is trained in this process

    monkeypatch.setattr(parallel_stages, "_PendingStages", pending)
    monkeypatch.setattr(parallel_stages, "run", lambda *_args, **_options: None)
    first = kdkit_here(*command, "--jobs", "2")
    assert first.code == 0, first.err
    assert second[0].returncode == 2
    assert "another process is running in run" in second[0].stderr


def stages_of(schedule: type, *nets: Net[nn.Module]) -> list[Stage]:
    training = Training(epochs=1)
    guidance = {"truth": Truth(nn.CrossEntropyLoss()), "kd_loss": SoftTargets(), "training": training}
    return list(schedule(*nets, **guidance).stages())


def test_a_stage_needs_the_stages_that_train_its_teachers():
    nets = [Net(name, nn.Linear(2, 2)) for name in "abc"]
    assert stage_dependencies(stages_of(Parallel, *nets)) == {"a": (), "b": (), "c": ("a", "b")}
    assert stage_dependencies(stages_of(MultiLevel, *nets)) == {"a": (), "b": ("a",), "c": ("a", "b")}


def test_a_stage_needs_earlier_stages_that_train_a_shared_module():
    body, training, truth = nn.Linear(2, 2), Training(epochs=1), Truth(nn.CrossEntropyLoss())
    first, second = (Net(name, nn.Sequential(body, nn.Linear(2, 2))) for name in ("first", "second"))
    unrelated = Net("unrelated", nn.Linear(2, 2))
    stages = [Stage({net: truth}, training) for net in (first, unrelated, second)]
    assert stage_dependencies(stages) == {"first": (), "unrelated": (), "second": ("first",)}


def test_a_teacher_is_not_retrained_before_the_stages_that_need_it_unchanged():
    teacher, student, training = (
        Net("teacher", nn.Linear(2, 2), trained=True),
        Net("student", nn.Linear(2, 2)),
        Training(epochs=1),
    )
    match = Match(teacher, Hint(), student=Tap(student.module), target=Tap(teacher.module))
    distillation = Stage({student: match}, training)
    retraining = Stage({teacher: Truth(nn.CrossEntropyLoss())}, training)
    assert stage_dependencies([distillation, retraining]) == {"student": (), "teacher": ("student",)}


class OpaqueTeacher:
    """A user-defined teacher that calls a net, which kdkit cannot know."""

    def __init__(self, net: Net[nn.Module]) -> None:
        self.net, self.name = net, f"wrapped {net.name}"

    def open(self, taps: tuple[Tap, ...], facts: BuildContext) -> TeacherSession:
        return self.net.open(taps, facts)


def test_a_stage_with_an_opaque_teacher_keeps_its_position():
    training, truth = Training(epochs=1), Truth(nn.CrossEntropyLoss())
    teacher, student, last = (Net(name, nn.Linear(2, 2)) for name in ("teacher", "student", "last"))
    for opaque in (OpaqueTeacher(teacher), Net("callable", lambda inputs: teacher.module(inputs), version="1")):
        stages = [
            Stage({teacher: truth}, training),
            Stage({student: Match(opaque, SoftTargets())}, training),
            Stage({last: truth}, training),
        ]
        assert stage_dependencies(stages) == {"teacher": (), "student": ("teacher",), "last": ("student",)}


def test_sixty_stages_of_one_net_are_ordered_quickly():
    net, training = Net("net", nn.Linear(2, 2)), Training(epochs=1)
    stages = [Stage({net: Truth(nn.CrossEntropyLoss())}, training, name=str(number)) for number in range(60)]
    assert _PendingStages(stages, set()).is_sequence  # would not end if it tried every path from stage to stage


def test_single_stages_need_a_run_folder():
    with pytest.raises(RecipeError, match="out=FOLDER"):
        RunOptions(only=("first",))


def test_a_single_stage_is_refused_if_the_stages_that_it_needs_are_not_finished(kdkit_here, tmp_path):
    import kdkit
    from kdkit.plugins.recipe_file import read_recipe_file

    (tmp_path / "mine.py").write_text(RECIPE)
    file = read_recipe_file(tmp_path / "mine.py")
    with pytest.raises(kdkit.errors.RunFolderError, match="'student' needs stage 'first', which is not finished"):
        kdkit.run(lambda: file.make({}), out=tmp_path / "run", only=("student",))
    result = kdkit.run(lambda: file.make({}), out=tmp_path / "run", only=("first",), resume=True)
    assert result.metrics == {}
    assert json.loads((tmp_path / "run" / "1-first" / "stage.json").read_text())["epochs"] == 3
    assert not (tmp_path / "run" / "2-second").exists()
