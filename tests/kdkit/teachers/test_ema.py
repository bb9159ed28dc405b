"""Ema: an average of the weights of a net."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from kdkit import AverageWeights, Ema, Match, Net, Recipe, RecipeError, Stage, Tap, check, run
from kdkit.losses import Hint, SoftTargets
from kdkit.teachers import open_teacher
from tests.helpers.callbacks import KillAfterEpoch, kill_run
from tests.helpers.open_stages import CONTEXT, TRAINING, batch_of, hidden_taps, problems_of
from tests.helpers.stages import assert_same_results
from tests.helpers.tiny import hooks_of, one_stage, plain_goal, tiny_data, tiny_net


def test_an_average_follows_the_net_by_its_decay():
    student, batch = tiny_net("student"), batch_of()
    before = {key: value.clone() for key, value in student.module.state_dict().items()}
    session = open_teacher(Ema(student, decay=0.9), (), CONTEXT)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(1)
    session.on_step()  # the first update has the decay 1 - 1/2, and not yet 0.9
    average = session.state_dict()["average"]
    torch.testing.assert_close(average["head.weight"], before["head.weight"] + 0.5)
    for _ in range(20):
        session.on_step()
    share_of_old = 0.5
    for update in range(2, 22):
        share_of_old *= min(0.9, 1 - 1 / (update + 1))
    expected = before["head.weight"] + 1 - share_of_old
    torch.testing.assert_close(session.state_dict()["average"]["head.weight"], expected)
    assert not session(batch).output.requires_grad
    session.close()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_average_with_a_decay_of_zero_is_the_net_as_of_its_last_update(precision):
    student = Net("student", nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).to(precision))
    session = open_teacher(Ema(student, decay=0), (), CONTEXT)
    for _ in range(2):
        with torch.no_grad():
            student.module(torch.randn(8, 4, dtype=precision))  # changes the statistics of the batch norm
            student.module[1].weight.add_(1)
        session.on_step()
        for name, tensor in student.module.state_dict().items():
            assert torch.equal(session._average.module.state_dict()[name], tensor)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_average_of_a_net_in_half_precision_follows_it(precision):
    student = Net("student", nn.Linear(4, 3).to(precision))
    weight = student.module.weight.detach()
    sessions = [open_teacher(Ema(student, decay=0.999), (), CONTEXT) for _ in range(2)]
    expected, session = weight.double(), sessions[0]
    for update in range(1, 3001):
        weight.fill_(1 + update / 3000)
        session.on_step()
        expected = expected.lerp(weight.double(), 1 - min(0.999, 1 - 1 / (update + 1)))
        if update == 2000:  # resumed
            sessions[1].load_state_dict(session.state_dict())
            session = sessions[1]
    state = session.state_dict()["average"]
    torch.testing.assert_close(state["weight"].double(), expected, rtol=1e-4, atol=1e-4)
    assert session._average.module.weight.dtype == precision
    torch.testing.assert_close(session._average.module.weight.double(), expected, rtol=1e-2, atol=1e-2)


class SizedByData(nn.Module):
    """A linear layer that stores the range of each output, as observers of torch.ao do: empty until the first pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("ranges", torch.empty(0))

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if self.training:
            self.ranges.resize_(3).copy_(outputs.detach().abs().amax(0))
        return outputs


def test_a_buffer_that_the_first_pass_resizes_is_trained_averaged_and_resumed(tmp_path):
    def recipe():
        student = Net("student", SizedByData())
        objective = plain_goal() + Match(Ema(student), SoftTargets())
        return one_stage(student, objective, epochs=3, ema=AverageWeights(decay=0.5))

    options = {"out": tmp_path / "run", "progress": False}
    whole = run(recipe, progress=False)
    assert whole.student.module.ranges.shape == (3,)
    kill_run(recipe, tmp_path / "run", KillAfterEpoch(1), progress=False)
    for _ in range(2):  # from a checkpoint, and from the weights of the finished stage
        assert_same_results(whole, run(recipe, **options, resume=True))


def test_a_buffer_that_the_first_pass_assigns_is_not_averaged():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", None, persistent=False)

        def forward(self, inputs):
            if self.mask is None:
                self.mask = torch.tensor([0.0, -torch.inf])
            return super().forward(inputs) + self.mask

    student = Net("student", Masked(), classes=["a", "b"])
    session = open_teacher(Ema(student), (), CONTEXT)
    saved = session.state_dict()
    student.module(torch.zeros(1, 2))
    session.on_step()
    session._average.module(torch.zeros(1, 2))
    session.on_step()
    assert session._average.module.mask.tolist() == [0.0, -torch.inf]
    session.load_state_dict(saved)


def test_the_mask_of_a_pruned_weight_is_copied_and_not_averaged():
    student = Net("student", nn.Linear(4, 3))
    prune.identity(student.module, "weight")
    session = open_teacher(Ema(student, decay=0.9), (), CONTEXT)
    prune.l1_unstructured(student.module, "weight", amount=6)
    session.on_step()
    assert torch.equal(session.state_dict()["average"]["weight_mask"], student.module.weight_mask)
    assert (student.module.weight_mask == 0).sum() == 6
    session.close()


def test_tied_weights_are_averaged_once_per_update():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    student = Net("student", nn.Sequential(first, nn.ReLU(), last, nn.Linear(4, 3)))
    before = first.weight.detach().clone()
    session = open_teacher(Ema(student, decay=0.9), (), CONTEXT)
    with torch.no_grad():
        first.weight.add_(1)
    session.on_step()
    # Averaged twice, it would be before + 0.75.
    torch.testing.assert_close(session.state_dict()["average"]["0.weight"], before + 0.5)
    session.close()


def test_a_net_that_cannot_be_copied_has_no_average():
    class Uncopyable(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.computed = self.weight * 2  # not a leaf tensor, which torch cannot copy

    student = Net("student", Uncopyable())
    problems = problems_of(student, plain_goal() + Match(Ema(student), SoftTargets()))
    assert len(problems) == 1
    assert "net 'student' cannot be copied, but its average is a copy" in problems[0]


def test_taps_on_the_net_are_moved_to_its_average():
    student, batch = tiny_net("student"), batch_of()
    tap = Tap(student.module.hidden)
    session = open_teacher(Ema(student), (tap,), CONTEXT)
    assert hooks_of(student.module) == 0  # the network itself is not tapped
    with torch.no_grad():
        student.module.hidden.weight.zero_()  # of the network, not of its average
    (feature,) = session(batch).features
    assert feature.abs().sum() > 0
    session.close()


def test_a_run_with_a_mean_teacher_does_not_add_it_to_the_student():
    student = tiny_net("student")
    keys = set(student.module.state_dict())
    features = Match(Ema(student), Hint(), **hidden_taps(student, student))
    objective = plain_goal() + Match(Ema(student), SoftTargets()) + features
    result = run(one_stage(student, objective, epochs=2), device="cpu")
    assert set(result.nets) == {"student"}
    assert set(student.module.state_dict()) == keys
    assert hooks_of(student.module) == 0
    assert result.history["student"][-1]["terms"]["average of student/soft_targets"] > 0


def test_two_averages_of_a_net_are_allowed_in_two_stages_but_not_in_one():
    student = tiny_net("student")
    slow, fast = (
        Match(Ema(student, decay), SoftTargets(), label=label) for label, decay in (("slow", 0.99), ("fast", 0.9))
    )
    (problem,) = problems_of(student, plain_goal() + slow + fast)
    assert "stage 'student': 2 different teachers are called 'average of student'" in problem
    # Names of teachers other than networks are unique within a stage only.
    stages = [Stage({student: plain_goal() + term}, TRAINING, name=term.label) for term in (slow, fast)]
    assert not check(Recipe(data=tiny_data(), schedule=[*stages])).problems


@pytest.mark.parametrize("decay", [1, -0.5, float("nan"), True, "0.9"])
def test_the_decay_of_an_average_must_be_at_least_zero_and_below_one(decay):
    with pytest.raises(RecipeError, match=f"the decay of an average must be at least 0 and below 1; got {decay!r}"):
        Ema(tiny_net("student"), decay=decay)
