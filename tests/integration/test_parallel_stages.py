"""Stages that need not wait for each other are trained at once, and end in the bits of one after the other."""

import json
from pathlib import Path

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
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.losses import Hint, SoftTargets
from kdkit.recipe.recipe import stage_dependencies
from kdkit.study.parallel_stages import _Open

RECIPE = '''
"""Two teachers that learn alone, and a student of both."""

import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


class Fatal(nn.Module):
    "Ends its process in the second epoch, but once only."

    def forward(self, inputs):
        lost = Path("lost")
        if self.training and len(inputs) == 8 and lost.exists():
            lost.write_text(lost.read_text() + ".")
            if len(lost.read_text()) == 6:
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


def digest(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".py") or path.name in ("metrics.json", "stage.json")
    }


def test_two_teachers_are_trained_in_two_processes_to_the_same_bits(kdkit_process, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    one = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "one/run", "--quiet")
    two = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "two/run", "--jobs", "2")
    assert (one.code, two.code) == (0, 0), two.err
    for name in ("first", "second"):
        assert f"stage {name}: trained in a process of its own" in two.err
        assert f"stage {name}: done" in two.err
    assert "stage student" not in two.err  # which waits for both, and is trained where it is watched
    assert "3. student: 3 epochs" in two.out
    assert digest(tmp_path / "one" / "run") == digest(tmp_path / "two" / "run")


def test_a_process_that_is_killed_is_said_and_its_stage_gone_on_with(kdkit_process, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    whole = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "one/run", "--quiet")
    (tmp_path / "lost").touch()
    call = ("run", "mine.py", "--device", "cpu", "--out", "two/run", "--jobs", "2")
    killed = kdkit_process(*call)
    assert killed.code == 2
    assert "SIGKILL" in killed.err
    assert "Traceback" not in killed.err
    state = RunFolder(tmp_path / "two" / "run").stage(1, "second").load_state()
    assert state is not None
    assert len(state["history"]) == 1
    again = kdkit_process(*call, "--resume")
    assert (whole.code, again.code) == (0, 0), again.err
    assert digest(tmp_path / "one" / "run") == digest(tmp_path / "two" / "run")


def test_what_cannot_be_run_at_once_is_refused_before_anything_is_written(kdkit_here, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(RECIPE)
    wrong = kdkit_here("run", "mine.py", "--rate", "fast", "--out", "run", "--jobs", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr("kdkit.engine.distributed.launched", lambda: False)
    shared = kdkit_here("run", "mine.py", "--out", "run", "--jobs", "2")
    assert (wrong.code, shared.code) == (2, 2)
    assert "leave out --jobs, or torchrun" in shared.err
    assert not (tmp_path / "run").exists()


def stages_of(schedule: type, *nets: Net[nn.Module]) -> list[Stage]:
    training = Training(epochs=1)
    guided = {"truth": Truth(nn.CrossEntropyLoss()), "kd_loss": SoftTargets(), "training": training}
    return list(schedule(*nets, **guided).stages())


def test_a_stage_needs_those_that_train_what_it_asks():
    nets = [Net(name, nn.Linear(2, 2)) for name in "abc"]
    assert stage_dependencies(stages_of(Parallel, *nets)) == {"a": (), "b": (), "c": ("a", "b")}
    assert stage_dependencies(stages_of(MultiLevel, *nets)) == {"a": (), "b": ("a",), "c": ("a", "b")}


def test_a_stage_needs_those_it_shares_a_trained_part_with():
    body, training, truth = nn.Linear(2, 2), Training(epochs=1), Truth(nn.CrossEntropyLoss())
    one, other = Net("one", nn.Sequential(body, nn.Linear(2, 2))), Net("other", nn.Sequential(body, nn.Linear(2, 2)))
    stranger = Net("stranger", nn.Linear(2, 2))
    stages = [Stage({net: truth}, training) for net in (one, stranger, other)]
    assert stage_dependencies(stages) == {"one": (), "stranger": (), "other": ("one",)}


def test_a_net_is_not_trained_before_those_who_ask_it_as_it_was():
    teacher, student, training = (
        Net("teacher", nn.Linear(2, 2), trained=True),
        Net("student", nn.Linear(2, 2)),
        Training(epochs=1),
    )
    asks = Stage({student: Match(teacher, Hint(), student=Tap(student.module), target=Tap(teacher.module))}, training)
    trains = Stage({teacher: Truth(nn.CrossEntropyLoss())}, training)
    assert stage_dependencies([asks, trains]) == {"student": (), "teacher": ("student",)}


class Wrapping:
    """A source of one's own that asks a net, which nobody can see."""

    def __init__(self, net: Net[nn.Module]) -> None:
        self.net, self.name = net, f"wrapped {net.name}"

    def open(self, taps: tuple[Tap, ...], facts: BuildContext) -> TeacherSession:
        return self.net.open(taps, facts)


def test_a_stage_whose_teacher_cannot_be_looked_into_keeps_its_place():
    training, truth = Training(epochs=1), Truth(nn.CrossEntropyLoss())
    teacher, student, last = (Net(name, nn.Linear(2, 2)) for name in ("teacher", "student", "last"))
    for hidden in (Wrapping(teacher), Net("callable", lambda inputs: teacher.module(inputs), version="1")):
        stages = [
            Stage({teacher: truth}, training),
            Stage({student: Match(hidden, SoftTargets())}, training),
            Stage({last: truth}, training),
        ]
        assert stage_dependencies(stages) == {"teacher": (), "student": ("teacher",), "last": ("student",)}


def test_many_stages_of_one_net_are_planned_in_no_time():
    net, training = Net("net", nn.Linear(2, 2)), Training(epochs=1)
    stages = [Stage({net: Truth(nn.CrossEntropyLoss())}, training, name=str(number)) for number in range(60)]
    assert _Open(stages, set()).in_turn


def test_watchers_of_the_recipe_file_are_told_once_that_the_run_ended(kdkit_process, tmp_path):
    callback = """
import kdkit

@kdkit.hookimpl
def run_ended(event):
    with open("ended", "a") as file:
        print(sorted(event.metrics), file=file)
"""
    (tmp_path / "mine.py").write_text(RECIPE + callback)
    assert kdkit_process("run", "mine.py", "--out", "run", "--jobs", "2", "--seed", "0").code == 0
    assert (tmp_path / "ended").read_text() == "['first', 'second', 'student']\n"


def test_stages_alone_are_of_a_run_folder():
    with pytest.raises(RecipeError, match="out=FOLDER"):
        RunOptions(only=("first",))


def test_a_stage_alone_is_refused_where_what_it_needs_is_not_there(kdkit_here, tmp_path):
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
