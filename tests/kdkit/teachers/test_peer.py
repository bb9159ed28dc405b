"""Peer: another net, or a layer of the same net, in training; and what every teacher in training needs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Ema, Match, Past, Peer, Recipe, RecipeError, Stage, Tap, Teachers, Training, run
from kdkit.engine.stage.module import DistillationModule
from kdkit.losses import HardTargets, SoftTargets
from tests.helpers.open_stages import CONTEXT, TRAINING, batch_of, open_objectives, problems_of, term_values
from tests.helpers.tiny import plain_goal, tiny_data, tiny_net


def mutual_objectives(first, second, loss):
    return {
        first: plain_goal() + Match(Peer(second), loss),
        second: plain_goal() + Match(Peer(first), loss),
    }


def test_peers_are_detached_targets_of_the_same_step():
    first, second, batch = tiny_net("one"), tiny_net("two", seed=1), batch_of()
    mutual = SoftTargets.mutual()
    module = DistillationModule(Stage(mutual_objectives(first, second, mutual), TRAINING), CONTEXT).eval()
    terms = module(batch, {})
    first_output, second_output = first(batch), second(batch)
    torch.testing.assert_close(terms["one: peer two/soft_targets"], mutual(first_output, second_output))
    torch.testing.assert_close(terms["two: peer one/soft_targets"], mutual(second_output, first_output))
    terms["one: peer two/soft_targets"].backward()
    assert all(parameter.grad is None for parameter in second.module.parameters())


def test_two_nets_of_one_stage_can_teach_each_other():
    first, second = tiny_net("one"), tiny_net("two", seed=1)
    # Deep mutual learning (Zhang et al. 2018): a stage that trains both.
    objectives = mutual_objectives(first, second, SoftTargets.mutual())
    recipe = Recipe(data=tiny_data(), schedule=[Stage(objectives, Training(epochs=2, batch_size=4))])
    result = run(recipe, device="cpu")
    assert set(result.metrics) == {"one", "two"}
    assert "two: peer one/soft_targets" in result.history["one+two"][0]["terms"]


def test_a_deep_layer_can_teach_a_shallow_one_of_the_same_net():
    student, batch = tiny_net("student", hidden=4), batch_of()
    taps = {"student": Tap(student.module.hidden), "target": Tap(student.module.norm)}
    student.module.norm.weight.data.fill_(2.0)
    # The dry run notices that the in-place ReLU overwrites the output of the batch norm, so the tap copies it.
    with open_objectives({student: Match(Peer(student), nn.MSELoss(), **taps)}) as open_stage:
        (value,) = term_values(open_stage, batch).values()
        hidden = student.module.hidden(batch.inputs)
        torch.testing.assert_close(value, F.mse_loss(hidden, student.module.norm(hidden)))
        value.backward()
        # The target side is detached: the deeper layer is not trained by its own teaching.
        assert student.module.norm.weight.grad is None
        assert student.module.hidden.weight.grad.abs().sum() > 0


def test_a_net_that_matches_its_own_outputs_is_a_problem_if_the_loss_has_no_gradient():
    student = tiny_net("student")
    for loss in (SoftTargets(), nn.MSELoss()):
        (problem,) = problems_of(student, plain_goal() + Match(Peer(student), loss))
        assert "has no effect: net 'student' is compared with its own output" in problem
    # Hard pseudo-labels of its own output have a gradient.
    assert not problems_of(student, plain_goal() + Match(Peer(student), HardTargets()))


@pytest.mark.parametrize("teacher_class", [Past, Ema, Peer])
def test_a_past_average_or_peer_of_a_net_that_is_not_trained_in_the_stage_is_a_problem(teacher_class):
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    problems = problems_of(student, plain_goal() + Match(teacher_class(teacher), SoftTargets()))
    message = "needs a net that is trained in this stage, but 'teacher' is not"
    assert any(message in problem for problem in problems)


def test_the_problem_of_a_net_matched_to_itself_names_the_alternatives():
    student = tiny_net("student")
    (problem,) = problems_of(student, Match(student, SoftTargets()))
    assert "Peer(net)" in problem
    assert "Past(net)" in problem


@pytest.mark.parametrize("teacher_class", [Past, Ema, Peer, Teachers])
def test_teachers_are_created_from_nets(teacher_class):
    with pytest.raises(RecipeError, match=f"{teacher_class.__name__} takes a Net; got a Linear"):
        teacher_class(nn.Linear(1, 1))
