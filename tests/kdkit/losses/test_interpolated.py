"""The interpolated teacher and the learned temperature: values, state over steps, and the reversed gradient."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

import kdkit
from kdkit import BuildContext, Match, Net, Recipe, RecipeError, Stage, Teachers, TorchData, Training, Truth
from kdkit.losses import CTKD, PSKD, TAID, PerTeacher, SoftTargets

SHAPES = (torch.Size((4, 5)),)
CONTEXT = BuildContext(classes=tuple("abcde"), task="multiclass", samples=4, ids=True)


def logits(seed=3, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(4, 5, generator=random, dtype=torch.float64) * 2).to(dtype) for _ in range(2))


def at(progress):
    return torch.tensor(progress)


def softmax(values):
    exponentials = np.exp(values - values.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def divergence(student, target, share):
    """Return the cross-entropy and the divergence between the mixture of logits and the student, means over rows."""
    student, target = student.numpy(), target.numpy()
    p, q = softmax((1 - share) * student + share * target), softmax(student)
    cross_entropy = -(p * np.log(q)).sum(1).mean()
    return cross_entropy, cross_entropy + (p * np.log(p)).sum(1).mean()


@pytest.mark.parametrize("options", [{}, {"start": 0.0, "end": 0.8, "rate": 0.2, "momentum": 0.5}, {"rate": 0.0}])
def test_the_share_of_the_teacher_grows_as_in_the_authors_code(options):
    settings = {"start": 0.4, "end": 1.0, "rate": 5e-4, "momentum": 0.99} | options
    loss = TAID(**options)
    share, trend, last = settings["start"], 0.0, math.inf
    for step in range(20):
        student, target = logits(step)
        student = student + step / 20 * (target - student)  # a student that approaches the teacher
        expected_loss, expected = divergence(student, target, share)
        value = loss(student, target, progress=at(step / 20))
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-8)
        if math.isfinite(last):
            trend = settings["momentum"] * trend + (1 - settings["momentum"]) * (last - expected_loss) / last
            faster = share + settings["rate"] * (1 - share) / (1 + math.exp(-trend))
            linear = settings["start"] + (settings["end"] - settings["start"]) * step / 20
            share = min(settings["end"], max(faster, linear))
        last = expected_loss
        assert loss.share.item() == pytest.approx(share, rel=1e-5)
        assert loss.trend.item() == pytest.approx(trend, rel=1e-4, abs=1e-6)


def test_the_share_grows_faster_while_the_loss_falls():
    shares = []
    for factors in ((1.0, 0.5, 0.25, 0.125), (1.0, 2.0, 4.0, 8.0)):  # the target approaches the student, or departs
        loss, (student, target) = TAID(rate=0.5, momentum=0.0), logits()
        for factor in factors:
            loss(student, student + factor * (target - student), progress=at(0.0))
        shares.append(loss.share.item())
    assert shares[0] > shares[1] > 0.4


def test_the_value_is_the_divergence_from_the_mixture_and_the_gradient_that_of_soft_targets():
    student, target = logits()
    mixture = 0.6 * student + 0.4 * target
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    values = [TAID()(leaves[0], target, progress=at(0.0)), SoftTargets(temperature=1.0)(leaves[1], mixture)]
    torch.testing.assert_close(*values, rtol=1e-7, atol=0)  # the share is float32
    gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip(values, leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_the_share_reaches_its_end_with_the_stage():
    loss, (student, target) = TAID(), logits()
    for progress in (0.0, 0.5, 1.0):
        loss(student, target, progress=at(progress))
    assert loss.share == 1
    torch.testing.assert_close(
        loss(student, target, progress=at(1.0)), SoftTargets(temperature=1.0)(student, target), rtol=1e-6, atol=0
    )


def test_evaluation_and_a_loss_that_is_not_finite_leave_the_state_as_it_is():
    loss, (student, target) = TAID(rate=0.5), logits()
    for _ in range(3):
        loss(student, target, progress=at(0.5))
    state = copy.deepcopy(loss.state_dict())
    loss(student * math.nan, target, progress=at(0.9))
    loss.eval()
    loss(student, target, progress=at(0.9))
    assert all(torch.equal(value, loss.state_dict()[key]) for key, value in state.items())
    loss.build(SHAPES, SHAPES, CONTEXT, None)
    assert all(torch.equal(value, TAID().state_dict()[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("start", [0.0, 0.4])
@pytest.mark.parametrize("both", [False, True])
def test_a_class_that_the_teacher_masks_is_masked_in_the_mixture(start, both):
    student, target = logits()
    target[:, 2] = -math.inf
    if both:
        student[:, 2] = -math.inf
    leaf = student.clone().requires_grad_()
    value = TAID(start=start)(leaf, target, progress=at(0.0))
    value.backward()
    mixture = ((1 - start) * student + start * target).masked_fill(target == -math.inf, -math.inf)
    torch.testing.assert_close(value, SoftTargets(temperature=1.0)(student, mixture), rtol=1e-6, atol=1e-12)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("make", [TAID, CTKD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e4])
def test_rows_of_any_scale_give_finite_values_gradients_and_states(make, dtype, scale):
    student, target = (side.sign().to(dtype) for side in logits())
    loss = make()
    for other, factor in [(target, scale), (target, 1e4), (-student, scale), (student, scale), (target, 0.0)]:
        leaf = (student * scale).to(dtype).requires_grad_()
        value = loss(leaf, (other * factor).to(dtype), progress=at(0.3))
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
        assert all(tensor.isfinite() or name == "last_loss" for name, tensor in loss.state_dict().items())


def test_a_compiled_step_has_the_same_values_and_state():
    losses = [TAID(rate=0.3), TAID(rate=0.3)]
    compiled = torch.compile(losses[1], backend="eager")
    for step in range(3):
        student, target = logits(step)
        values = [call(student, target, progress=at(step / 3)) for call in (losses[0], compiled)]
        torch.testing.assert_close(*values)
    torch.testing.assert_close(losses[0].state_dict(), losses[1].state_dict())


def random_data(count, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.utils.data.TensorDataset(torch.randn(count, 3, generator=random), torch.arange(count) % 5)


def recipe(loss, teachers=("teacher",), **training):
    torch.manual_seed(0)
    nets = [Net(name, nn.Linear(3, 5), trained=True) for name in teachers]
    teacher = nets[0] if len(nets) == 1 else Teachers(*nets)
    student = Net("student", nn.Linear(3, 5))
    data = TorchData(random_data(24, 0), random_data(8, 1), random_data(8, 2), classes=list("abcde"))
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, loss)
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(batch_size=8, **training))])


def test_checks_do_not_move_the_share_and_training_does(tmp_path):
    loss = TAID(rate=0.1)
    assert not kdkit.check(recipe(loss, epochs=2)).problems
    assert loss.share == torch.tensor(0.4)
    kdkit.run(recipe(loss, epochs=2), device="cpu", out=tmp_path / "run")
    assert loss.share > 0.7  # the linear growth alone ends at 0.4 + 0.6 * 5 / 6 = 0.9


def test_a_weight_per_sample_is_refused_since_the_share_follows_the_whole_batch():
    weighted = PerTeacher(TAID(), weights="confidence")
    (problem,) = kdkit.check(recipe(weighted, ("first", "second"), epochs=1)).problems
    assert "in TAID the samples of a batch depend on each other, by relations, a batch norm or a state" in problem
    assert not kdkit.check(recipe(PerTeacher(TAID()), ("first", "second"), epochs=1)).problems


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.5, 1.0])
def test_the_temperature_gets_the_reversed_gradient_along_a_cosine(progress):
    student, target = logits()
    loss = CTKD(ramp=0.5)
    value = loss(student.requires_grad_(), target, progress=at(progress))
    student_gradient, gradient = torch.autograd.grad(value, [student, loss.value])
    trained = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 * trained.sigmoid()
    q, p = ((side / temperature).softmax(1) for side in (student, target))
    expected = temperature**2 * (p * (p / q).log()).sum() / 4
    expected_student, plain = torch.autograd.grad(expected, [student, trained])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(student_gradient, expected_student, rtol=1e-4, atol=1e-8)
    factor = (1 - math.cos(math.pi * min(progress / 0.5, 1))) / 2
    assert gradient.item() == pytest.approx(-factor * plain.item(), rel=1e-4, abs=1e-7)


def test_training_raises_the_loss_by_the_temperature():
    student, target = logits()
    loss = CTKD(t_squared=False)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    values = []
    for _ in range(5):
        value = loss(student, target, progress=at(1.0))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values)
    assert values[-1] > values[0]
    loss.build(SHAPES, SHAPES, CONTEXT, None)
    assert loss.value == 1


def test_the_learned_temperature_can_be_mapped_over_samples():
    student, target = logits()
    loss = CTKD()
    values = vmap(lambda mine, theirs: loss(mine[None], theirs[None], progress=at(0.5)))(student, target)
    torch.testing.assert_close(values.mean(), loss(student, target, progress=at(0.5)))


def test_a_curriculum_of_no_length_is_over_from_the_start():
    student, target = logits()
    loss = CTKD(ramp=0.0)
    loss(student, target, progress=at(0.0)).backward()
    assert loss.value.grad.abs() > 0


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (TAID, {"start": 1.0}, r"start must be a number in \[0, 1\); got 1.0"),
        (TAID, {"start": 0.8, "end": 0.5}, "the teacher's share grows from start to end; got start=0.8 and end=0.5"),
        (TAID, {"rate": -0.1}, "rate must be a number in"),
        (TAID, {"momentum": 1.0}, r"momentum must be a number in \[0, 1\); got 1.0"),
        (CTKD, {"least": 0.0}, "least must be a finite number above 0; got 0.0"),
        (CTKD, {"width": -1.0}, "width must be a finite number of at least 0; got -1.0"),
        (CTKD, {"ramp": 2.0}, r"ramp must be a number in \[0, 1\]; got 2.0"),
        (CTKD, {"t_squared": 1}, "t_squared"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


@pytest.mark.parametrize("make", [TAID, CTKD, lambda: CTKD(ramp=0), PSKD, lambda: PSKD(epochs=5)])
def test_progress_may_be_a_float_in_a_loop_of_the_user(make):
    student, target = torch.randn(2, 4, 3).unbind()
    labels = {"labels": torch.tensor([0, 1, 2, 0])} if isinstance(make(), PSKD) else {}
    value = make()(student, target, progress=0.3, **labels)
    assert torch.equal(value, make()(student, target, progress=torch.tensor(0.3), **labels))
