"""Past, Ema, Peer and Teachers in whole runs: interrupted, resumed, and compiled."""

from functools import partial

import pytest
import torch
from torch import nn

import kdkit
from kdkit import Ema, Match, Net, Past, Peer, Recipe, Stage, Tap, Teachers
from kdkit.losses import OFD, PSKD, PerTeacher, SoftTargets
from tests.helpers.callbacks import KillAtStep, killed_and_resumed
from tests.helpers.open_stages import open_and_build
from tests.helpers.stages import Small, assert_same_results, data, training, truth


def past():
    student = Net("student", Small())
    return {student: Match(Past(student), PSKD())}  # PS-KD has the labels in its loss


def average():
    student = Net("student", Small())
    return {student: truth() + Match(Ema(student, decay=0.9), SoftTargets())}


def mutual():
    large, small = Net("one", Small(8)), Net("two", Small(4))
    loss = SoftTargets.mutual()
    return {large: truth() + Match(Peer(small), loss), small: truth() + Match(Peer(large), loss)}


def learned_weights():
    first, second = Net("first", Small(8), trained=True), Net("second", Small(12), trained=True)
    student = Net("student", Small(4))
    return {student: truth() + Match(Teachers(first, second), PerTeacher(SoftTargets(), weights="learned"))}


def by_confidence():
    first, second = Net("first", Small(8), trained=True), Net("second", Small(12), trained=True)
    student = Net("student", Small(4))
    return {student: truth() + Match(Teachers(first, second), PerTeacher(SoftTargets(), weights="confidence"))}


def recipe(make):
    torch.manual_seed(0)  # `steps` below makes a recipe outside a run, which would seed it
    return Recipe(data=data(), schedule=[Stage(make(), training(epochs=4))])


@pytest.mark.parametrize("make", [past, average, mutual, learned_weights])
def test_a_resumed_run_ends_in_the_same_bits(make, tmp_path):
    resumed = killed_and_resumed(partial(recipe, make), tmp_path / "run", KillAtStep(2, batch=1), device="cpu")
    assert_same_results(resumed, kdkit.run(partial(recipe, make), device="cpu"))
    assert len(list(tmp_path.glob("run/*/weights*"))) == len(make())  # a file for each net that is trained


def steps(make, wrap):
    """Return the terms of two short epochs of a DistillationModule that `wrap` may compile."""
    stage = recipe(make).stages[0]
    opened = open_and_build(stage, data(), data().train.batch(torch.arange(8), 0))
    module = wrap(opened.module)
    opened.module.eval()  # no dropout: the compiled module would draw other numbers
    terms = []
    for _ in range(2):
        for rows in torch.arange(32).split(8):
            batch = data().train.batch(rows, 0)
            terms += module(batch, opened.teacher_outputs(batch)).values()
            for session in opened.sessions.values():
                session.observe(batch, opened.module.student_outputs)
        for session in opened.sessions.values():
            session.on_epoch_end()  # Past answers from the second epoch on
    opened.close()
    return torch.stack(terms).detach()


# Each is compiled anew: the suite has time for two.
@pytest.mark.parametrize(
    "make",
    [past, by_confidence, *(pytest.param(make, marks=pytest.mark.slow) for make in (average, mutual, learned_weights))],
)
def test_a_compiled_stage_is_one_graph_with_the_same_terms(make):
    plain = steps(make, lambda module: module)
    compiled = steps(make, lambda module: torch.compile(module, backend="eager", fullgraph=True))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_the_margins_of_ofd_come_from_the_tapped_batch_norm():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.second(self.first(inputs).relu()).relu())

    teacher, student = Net("teacher", Deep(), trained=True), Net("student", Deep())
    nn.init.constant_(teacher.module.second.bias, -2.0)  # OFD computes its margins from bias and weight
    loss = OFD()
    taps = {"student": Tap(student.module.second), "target": Tap(teacher.module.second)}
    objective = truth() + Match(teacher, loss, **taps)
    kdkit.check(Recipe(data=data(), schedule=[Stage({student: objective}, training())])).require()
    assert (loss.margins < -2).all()
