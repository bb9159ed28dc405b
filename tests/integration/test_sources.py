"""Past, average, peers and panels in real runs: interrupted and gone on with, and told across processes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdkit
from kdkit import (
    OFD,
    PSKD,
    Ema,
    FromEach,
    Match,
    Net,
    Panel,
    Past,
    Peer,
    Recipe,
    SoftTargets,
    Stage,
    Stages,
    Tap,
    hookimpl,
)
from kdkit.checking import facts_of
from kdkit.rehearsal import Rehearsal
from kdkit.sources import ask

from .conftest import environment
from .tiny import Small, data, same, training, truth


def past():
    student = Net("student", Small())
    return {student: Match(Past(student), PSKD())}


def average():
    student = Net("student", Small())
    return {student: truth() + Match(Ema(student, decay=0.9), SoftTargets())}


def mutual():
    one, two = Net("one", Small(8)), Net("two", Small(4))
    loss = SoftTargets.mutual()
    return {one: truth() + Match(Peer(two), loss), two: truth() + Match(Peer(one), loss)}


def panel():
    first, second = Net("first", Small(8), trained=True), Net("second", Small(12), trained=True)
    student = Net("student", Small(4))
    return {student: truth() + Match(Panel(first, second), FromEach(SoftTargets(), weights="learned"))}


def by_confidence():
    first, second = Net("first", Small(8), trained=True), Net("second", Small(12), trained=True)
    student = Net("student", Small(4))
    return {student: truth() + Match(Panel(first, second), FromEach(SoftTargets(), weights="confidence"))}


def recipe(make):
    torch.manual_seed(0)
    return Recipe(data=data(), schedule=Stages(Stage(make(), training(epochs=4))))


class Stop:
    """Interrupt a run, as a keyboard does, in an epoch's second step."""

    @hookimpl
    def step_ended(self, event):
        if (event.epoch, event.batch) == (2, 1):
            raise KeyboardInterrupt


@pytest.mark.parametrize("make", [past, average, mutual, panel])
def test_a_run_gone_on_with_ends_in_the_same_bits(make, tmp_path):
    kdkit.run(lambda: recipe(make), device="cpu", out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(lambda: recipe(make), device="cpu", out=tmp_path / "cut", watchers=[Stop()])
    kdkit.run(lambda: recipe(make), device="cpu", out=tmp_path / "cut", resume=True)
    whole, cut = (
        {path.name: load_file(path) for path in (tmp_path / each).glob("*/weights*")} for each in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert len(whole) == len(make())
    assert all(same(weights, cut[name]) for name, weights in whole.items())


def steps(make, wrap):
    """Return the terms of two short epochs of a lesson, compiled or not."""
    stage = recipe(make).schedule.stages()[0]
    rehearsal = Rehearsal(stage, facts_of(data()), data().train.batch(torch.arange(8), 0))
    lesson = wrap(rehearsal.lesson)
    rehearsal.lesson.eval()
    found = []
    for _ in range(2):
        for rows in torch.arange(32).split(8):
            batch = data().train.batch(rows, 0)
            found += lesson(batch, ask(rehearsal.respondents, batch)).values()
            for each in rehearsal.respondents.values():
                each.observe(batch, rehearsal.lesson.said)
        for each in rehearsal.respondents.values():
            each.end_epoch()
    rehearsal.close()
    return torch.stack(found).detach()


@pytest.mark.parametrize("make", [past, average, mutual, panel, by_confidence])
def test_a_compiled_lesson_says_the_same_and_is_one_graph(make):
    plain = steps(make, lambda lesson: lesson)
    compiled = steps(make, lambda lesson: torch.compile(lesson, backend="eager", fullgraph=True))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_the_margins_of_ofd_are_those_of_the_batch_norm_that_is_tapped():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.second(self.first(inputs).relu()).relu())

    teacher, student = Net("teacher", Deep(), trained=True), Net("student", Deep())
    nn.init.constant_(teacher.module.second.bias, -2.0)
    loss = OFD()
    sides = {"student": Tap(student.module.second), "target": Tap(teacher.module.second)}
    goal = truth() + Match(teacher, loss, **sides)
    kdkit.check(Recipe(data=data(), schedule=Stages(Stage({student: goal}, training())))).require()
    assert (loss.margins < -2).all()


# What one of two processes does: learn a batch of its own, and know what the other one learned.
RANK = """
import sys

import torch
from torch import distributed, nn

from kdkit import Batch, Facts, Net, Past
from kdkit.ranks import averaged, gathered
from kdkit.sources import opened

number, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
net = Net("student", nn.Linear(2, 3))
respondent = opened(Past(net), (), Facts(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True))
ids = torch.arange(3) if number == 0 else torch.tensor([5, 4])
batch = Batch(torch.zeros(len(ids), 2), ids % 3, ids)
respondent.rehearse(batch)
respondent.observe(batch, {"student": ids[:, None] + torch.zeros(1, 3)})
respondent.end_epoch()
answer = respondent.ask(Batch(torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), torch.arange(8)))
told = {"gathered": gathered(ids), "averaged": averaged(torch.tensor([float(number), 4.0]))}
torch.save({"output": answer.output[:, 0], "known": answer.known, **told}, f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_every_process_knows_the_past_of_all_samples(tmp_path):
    in_two_processes(RANK, tmp_path)
    for number in range(2):
        told = torch.load(tmp_path / f"{number}.pt")
        assert told["known"].tolist() == [True, True, True, False, True, True, False, False]
        assert told["output"][told["known"]].tolist() == [0, 1, 2, 4, 5]
        assert told["gathered"].tolist() == [0, 1, 2, 5, 4]
        assert told["averaged"].tolist() == [0.5, 4.0]


# Half a batch in each of two processes, or the whole of it in one.
CONTRAST = """
import sys

import torch
from torch import distributed

from kdkit import CRD, Facts

number, folder = int(sys.argv[1]), sys.argv[2]
facts = Facts(classes=("a", "b"), task="multiclass", samples=6, ids=True)
generator = torch.Generator().manual_seed(0)
features = torch.randn(2, 2, 4, 3, generator=generator)


def learn(half):
    torch.manual_seed(0)
    loss = CRD(width=None, negatives=3)
    loss.build((torch.Size((4, 3)),), (torch.Size((4, 3)),), facts, None)
    for step, (student, target) in enumerate(features):
        ids = torch.tensor([0, 1, 2, 3]) + step
        loss(student[half], target[half], ids=ids[half], labels=ids[half] % 2)
        loss.log_normalisers.fill_(0.0)  # estimated on what each saw first, so they differ from those of the whole
    return {key: value for key, value in loss.state_dict().items() if key != "log_normalisers"}


whole = learn(slice(None))
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
torch.save((whole, learn(slice(2 * number, 2 * number + 2))), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_memories_of_contrast_are_the_same_in_two_processes_as_in_one(tmp_path):
    in_two_processes(CONTRAST, tmp_path)
    for number in range(2):
        whole, shared = torch.load(tmp_path / f"{number}.pt")
        assert whole["memories"].abs().sum() > 0
        for key, value in whole.items():
            torch.testing.assert_close(shared[key], value)


def in_two_processes(script, folder):
    """Run a script twice at once, with its number and the folder as arguments."""
    (folder / "script.py").write_text(script)
    command = [sys.executable, str(folder / "script.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
