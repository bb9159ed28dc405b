"""Past, average, peers and panels in real runs: interrupted and gone on with, and told across processes."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdkit
from kdkit import Ema, Match, Net, Past, Peer, Recipe, Stage, Tap, Teachers, hookimpl
from kdkit.engine.check.dry_run import Rehearsal
from kdkit.engine.open_stage import build_context
from kdkit.losses import OFD, PSKD, PerTeacher, SoftTargets
from kdkit.teachers import run_teachers
from tests.helpers.stages import Small, data, same, training, truth


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
    return {student: truth() + Match(Teachers(first, second), PerTeacher(SoftTargets(), weights="learned"))}


def by_confidence():
    first, second = Net("first", Small(8), trained=True), Net("second", Small(12), trained=True)
    student = Net("student", Small(4))
    return {student: truth() + Match(Teachers(first, second), PerTeacher(SoftTargets(), weights="confidence"))}


def recipe(make):
    torch.manual_seed(0)
    return Recipe(data=data(), schedule=[Stage(make(), training(epochs=4))])


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
        kdkit.run(lambda: recipe(make), device="cpu", out=tmp_path / "cut", callbacks=[Stop()])
    kdkit.run(lambda: recipe(make), device="cpu", out=tmp_path / "cut", resume=True)
    whole, cut = (
        {path.name: load_file(path) for path in (tmp_path / each).glob("*/weights*")} for each in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert len(whole) == len(make())
    assert all(same(weights, cut[name]) for name, weights in whole.items())


def steps(make, wrap):
    """Return the terms of two short epochs of a lesson, compiled or not."""
    stage = recipe(make).stages[0]
    rehearsal = Rehearsal(stage, build_context(data()), data().train.batch(torch.arange(8), 0))
    lesson = wrap(rehearsal.lesson)
    rehearsal.lesson.eval()
    found = []
    for _ in range(2):
        for rows in torch.arange(32).split(8):
            batch = data().train.batch(rows, 0)
            found += lesson(batch, run_teachers(rehearsal.sessions, batch)).values()
            for each in rehearsal.sessions.values():
                each.observe(batch, rehearsal.lesson.said)
        for each in rehearsal.sessions.values():
            each.on_epoch_end()
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
    objective = truth() + Match(teacher, loss, **sides)
    kdkit.check(Recipe(data=data(), schedule=[Stage({student: objective}, training())])).require()
    assert (loss.margins < -2).all()
