"""check_loss, the contract check for plugin authors: for each check, a loss that fails it."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit.errors import ContractError
from kdkit.testing import check_loss


def mse(student, target):
    return F.mse_loss(student, target)


class WithProjection(nn.Module):
    """A correct loss with a projection; the classes below add one fault each."""

    def build(self, student, target, context, teacher):
        self.map = nn.Linear(student[0][1], target[0][1])

    def forward(self, student, target):
        return F.mse_loss(self.map(student.movedim(1, -1)).movedim(-1, 1), target)


def test_correct_losses_pass_on_outputs_and_on_features():
    check_loss(lambda: mse)
    check_loss(nn.SmoothL1Loss, on="features")
    check_loss(WithProjection, on="features", least_when_equal=False)


def detached(student, target):
    return F.mse_loss(student.detach(), target)


def unmoved(student, target):
    return (student * 0).sum()


def without_graph(student, target):
    return F.mse_loss(torch.zeros_like(student, requires_grad=True), target)


def unreduced(student, target):
    return (student - target) ** 2


def plain_number(student, target):
    return 1.0


def not_a_number(student, target):
    return (student - target).sum() / 0


def broken(student, target):
    raise LookupError("nothing there")


def target_in_place(student, target):
    return F.mse_loss(student, target.mul_(1.5))


def student_in_place(student, target):
    student.data.mul_(1.5)
    return F.mse_loss(student, target)


def unseeded(student, target):
    return F.mse_loss(student, target) * random.random()


def viewed(student, target):
    return F.mse_loss(student.view(-1), target.view(-1))


def in_the_order_of_memory(student, target):
    reordered = (
        student.as_strided(student.shape, student.mT.contiguous().mT.stride()) if is_channels_last(student) else student
    )
    return F.mse_loss(reordered, target) + reordered.flatten()[1] * is_channels_last(student)


def is_channels_last(features):
    return features.ndim == 3 and features.stride(1) == 1


def standardised(student, target):
    return ((student - student.mean(0)) / student.std(0) - target).square().mean()


def of_four(student, target):
    weights = torch.ones(4) if len(student) > 1 else torch.ones(1)
    return ((student - target).square().mean(1) * weights).mean()


def divided_by_its_length(student, target):
    return (student / student.norm() - target / target.norm()).square().mean()


def by_distance_from_one(student, target):
    student, target = (1 / (1 - side).square().mean() for side in (student, target))
    return (student - target).square()


def standardised_over_positions(student, target):
    if student.ndim < 3:
        return F.mse_loss(student, target)
    student, target = (side / (side - side.mean(2, True)).norm(dim=2, keepdim=True) for side in (student, target))
    return F.mse_loss(student, target)


def of_relative_distances(student, target):
    if len(student) == 1:
        return F.mse_loss(student, target)
    student, target = (side / (side[0] - side).square().sum() for side in (student, target))
    return F.mse_loss(student, target)


def of_unit_length(student, target):
    return F.mse_loss(F.normalize(student), F.normalize(target))


def of_unit_length_in_float(student, target):
    return F.mse_loss(F.normalize(student.float()), F.normalize(target.float()))


def of_unit_length_with_larger_eps(student, target):
    return F.mse_loss(F.normalize(student.float(), eps=1e-4), F.normalize(target.float(), eps=1e-4))


def rooted(student, target):
    return (student - target).square().mean().sqrt()


def logarithm(student, target):
    return -(target.softmax(1) * student.softmax(1).log()).sum(1).mean()


def squared_in_half(student, target):
    return ((student - target) ** 2).mean()


def probabilities_for_their_logarithms(student, target):
    return F.kl_div(student.float().softmax(1), target.float().softmax(1), reduction="batchmean")


def summed(student, target):
    return (student.float() - target.float()).square().sum()


def over_a_fixed_batch(student, target):
    return (student.float() - target.float()).square().mean(1).sum() / 32


def summed_over_pairs(student, target):
    with torch.autocast(student.device.type, enabled=False):
        return (student.float() @ student.float().T - target.float() @ target.float().T).square().sum()


def over_the_samples(student, target):
    return F.kl_div(student.float().log_softmax(0), target.float().softmax(0), reduction="batchmean")


def backwards(student, target):
    return -F.mse_loss(student, target).clamp(max=100)


def numpy_bound(student, target):
    return F.mse_loss(student, target) + float(student.detach().numpy().sum()) * 0


def half(student, target):
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), dtype=torch.bfloat16):
        return (((student @ target.mT) + 300).float() - 300).square().mean()


def beyond_fp16(student, target):
    return ((student - target) * 1e3).square().mean()


def by_thousandths(student, target):
    return F.mse_loss((student * 1e-3).float() * 1e3, (target * 1e-3).float() * 1e3)


def of_squares(student, target):
    return F.mse_loss(student.float().square(), target.float().square())


def of_one_precision(student, target):
    return torch.lerp(student, target, torch.full_like(student, 0.5)).float().square().mean()


def cancelled(student, target):
    student, target = (side if side.dtype == torch.float64 else side.float() for side in (student, target))
    return ((student + 3e5) - (target + 3e5)).square().mean()


@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (detached, "on (4, 5) returns a value without a gradient"),
        (unmoved, "on (4, 5) gives a zero gradient to the student"),
        (without_graph, "on (4, 5) gives the student no gradient"),
        (unreduced, "on (4, 5) returns a tensor (4, 5), not a scalar; reduce it"),
        (plain_number, "returns a float, not a scalar"),
        (not_a_number, "inf, not a finite number"),
        (broken, "on (4, 5) raises LookupError: nothing there"),
        (target_in_place, "changes the target's tensors in place"),
        (student_in_place, "changes the student's tensors in place"),
        (unseeded, "is not deterministic for one seed"),
        (viewed, "on non-contiguous memory of (4, 5) raises RuntimeError"),
        (standardised, "on a batch of one of (1, 5)"),
        (of_four, "on a batch of seven of (7, 5) raises RuntimeError"),
        (divided_by_its_length, "on zeros (student) of (4, 5)"),
        (by_distance_from_one, "on ones (student) of (4, 5)"),
        (of_relative_distances, "on equal samples (student) of (4, 5)"),
        (of_unit_length, "in fp16 of (4, 5) is nan, not a finite number; convert both sides with .float() first"),
        (of_unit_length_in_float, "of (4, 5) gives a gradient that is not finite; if it divides by a norm"),
        (rooted, "on two equal sides of (4, 5) gives a gradient that is not finite"),
        (logarithm, "on numbers of +-10000 of (4, 5)"),
        (squared_in_half, "on numbers of +-10000 in fp16 of (4, 5) is inf"),
        (by_thousandths, "on numbers of +-10000 in fp16 of (4, 5) gives a gradient that is not finite"),
        (backwards, "if both sides are equal, but"),
        (probabilities_for_their_logarithms, "if both sides are equal, but"),
        (summed, "on (4, 5) is 39.8853, but 79.7707 for each sample twice"),
        (over_a_fixed_batch, "for each sample twice, so its weight depends on the batch size; take the mean over"),
        (summed_over_pairs, "for each sample twice, so its weight depends on the batch size; take the mean over"),
        (
            over_the_samples,
            "on batches of one of (1, 5) gives the student no gradient, so it compares the",
        ),
        (numpy_bound, "on bf16 autocast (bf16 and bf16) of (4, 5) raises TypeError"),
        (half, "in float32 for the same numbers; compute it in float32"),
        (beyond_fp16, "on fp16 autocast (fp16 and fp16) of (4, 5) is inf"),
        (of_one_precision, "on bf16 autocast (bf16 and fp32) of (4, 5) raises RuntimeError"),
        (cancelled, "in float64; avoid differences of large numbers"),
    ],
)
def test_a_faulty_loss_is_reported_with_its_inputs(loss, message):
    with pytest.raises(ContractError) as caught:
        check_loss(lambda: loss)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{loss.__name__} on ")


def test_a_gradient_that_is_beyond_the_range_of_fp16_in_float32_too_passes():
    check_loss(lambda: of_squares, on="features")


def test_unit_vectors_with_the_eps_of_the_advice_pass():
    check_loss(lambda: of_unit_length_with_larger_eps)


class WithFrozenInteger(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1), requires_grad=False)

    def forward(self, student, target):
        return self.factor * nn.functional.mse_loss(student, target)


def test_a_loss_with_a_frozen_weight_passes():
    check_loss(WithFrozenInteger)


def test_a_loss_that_declares_a_sum_over_samples_passes():
    check_loss(lambda: nn.MSELoss(reduction="sum"))


SHARED = nn.MSELoss()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (mse, {}, "a function without arguments .*, such as lambda: my_loss .*; got mse, which needs student, target$"),
        (nn.MSELoss(), {}, r"a function without arguments .*; got MSELoss\(\)$"),
        (lambda: None, {}, "it returns None$"),
        (lambda: SHARED, {}, "a new loss on each call, such as MSELoss .*returns the same one twice$"),
        (lambda: nn.MSELoss, {}, r"it returns the class MSELoss; did you forget its \(\)\?$"),
        (nn.MSELoss, {"on": "output"}, "on must be one of outputs, features; got 'output'$"),
        (nn.MSELoss, {"task": "labels"}, "task must be one of multiclass, multilabel; got 'labels'$"),
        (nn.MSELoss, {"shapes": []}, r"shapes must be a list of shapes .*; got \[\]$"),
        (nn.MSELoss, {"shapes": [5]}, r"shapes must be a list of shapes .*; got \[5\]$"),
        (nn.MSELoss, {"shapes": [(0,)]}, r"shapes must be a list of shapes .*; got \[\(0,\)\]$"),
        (nn.MSELoss, {"shapes": [((5,), (6,), (7,))]}, r"shapes must be a list of shapes .*"),
        (nn.MSELoss, {"layers": ("3", "3")}, r"layers must be the numbers of taps .*; got \('3', '3'\)$"),
        (nn.MSELoss, {"layers": 3}, r"layers must be the numbers of taps .*, such as \(3, 3\); got 3$"),
    ],
)
def test_wrong_arguments_are_reported(make, options, message):
    with pytest.raises(ContractError, match=message):
        check_loss(make, **options)


def test_a_division_by_the_spread_of_a_channel_is_reported():
    with pytest.raises(ContractError, match=r"on constant channels \(student\) of \(4, 5, 6\)"):
        check_loss(lambda: standardised_over_positions, on="features", shapes=[(5, 6)])


def test_a_dependence_on_the_memory_layout_is_reported():
    with pytest.raises(ContractError, match=r"in channels-last memory, but .* for the same numbers in contiguous"):
        check_loss(lambda: in_the_order_of_memory, on="features", least_when_equal=False)


class TeacherGradient(nn.Module):
    """Computes with the teacher's weights, which then get a gradient."""

    def build(self, student, target, context, teacher):
        self.teacher = (teacher,)

    def forward(self, student, target):
        return F.mse_loss(self.teacher[0][0](student), target)


class TeacherAsSubmodule(WithProjection):
    """Registers the teacher as a submodule, without giving it a gradient."""

    def build(self, student, target, context, teacher):
        super().build(student, target, context, teacher)
        self.teacher = teacher

    def forward(self, student, target):
        return super().forward(student, target) + self.teacher[0](student.detach()).detach().mean()


class TeacherStatistics(TeacherGradient):
    """Updates the running statistics of the teacher's batch norm."""

    def forward(self, student, target):
        teacher = self.teacher[0].train()
        with torch.no_grad():
            teacher(student.expand(2 * len(student), -1) if len(student) == 1 else student)
        teacher.eval()
        return F.mse_loss(student, target)


class TeacherInTraining(TeacherGradient):
    """Puts the teacher in training mode."""

    def forward(self, student, target):
        self.teacher[0].train()
        return F.mse_loss(student, target)


class UnusedWeight(WithProjection):
    """Has a weight that is not used."""

    def build(self, student, target, context, teacher):
        super().build(student, target, context, teacher)
        self.spare = nn.Parameter(torch.ones(1))


class ProjectorPerBuild(nn.Module):
    """Adds a projector each time it is built."""

    def __init__(self):
        super().__init__()
        self.projectors = nn.ModuleList()

    def build(self, student, target, context, teacher):
        self.projectors.append(nn.Linear(student[0][1], target[0][1]))

    def forward(self, student, target):
        for projector in self.projectors:
            student = projector(student.movedim(1, -1)).movedim(-1, 1)
        return F.mse_loss(student, target)


class ScaledPerBuild(nn.Module):
    """Depends on the number of builds."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def build(self, student, target, context, teacher):
        self.scale *= 2

    def forward(self, student, target):
        return self.scale * F.mse_loss(student, target)


class ScaledPerInstance(nn.Module):
    """Depends on the number of instances created so far."""

    instances = 0

    def __init__(self):
        super().__init__()
        ScaledPerInstance.instances += 1
        self.factor = ScaledPerInstance.instances

    def forward(self, student, target):
        return self.factor * F.mse_loss(student, target)


class FailingBuild(nn.Module):
    """Raises an error in its build."""

    def build(self, student, target, context, teacher):
        raise LookupError("no such layer")


class UnsavedState(nn.Module):
    """Keeps state that is not in its state_dict()."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, student, target):
        self.seen += self.training
        return F.mse_loss(student, target) * (1 + self.seen)


class GrowingState(nn.Module):
    """Has a buffer that grows with each step, so that a new loss cannot load it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, student, target):
        if self.training:
            self.seen = torch.cat([self.seen, student.detach().mean()[None]])
        return F.mse_loss(student, target)


class StateInEval(nn.Module):
    """Changes its state in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, target):
        self.seen += 1
        return F.mse_loss(student, target)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (TeacherGradient, r"gives the teacher a gradient: 0.weight, 0.bias"),
        (
            TeacherAsSubmodule,
            r"has the teacher's 0.weight, 0.bias, 1.weight, 1.bias among its parameters",
        ),
        (TeacherStatistics, r"changes the state of the teacher that it is built with"),
        (TeacherInTraining, r"takes the teacher out of eval mode"),
        (UnusedWeight, r"has weights without a gradient: spare"),
        (ProjectorPerBuild, r"has 30 parameters after one build, and 60 after two builds"),
        (ScaledPerBuild, r"is .* after one build, and .* after two builds"),
        (ScaledPerInstance, r"is not deterministic for one seed"),
        (FailingBuild, r"in build\(\) raises LookupError: no such layer; build\(student, target, context, teacher\)"),
        (UnsavedState, r"is .*, but .* after loading its state_dict\(\) in eval mode; save all of its state"),
        (GrowingState, r"when its state_dict\(\) is loaded raises RuntimeError"),
        (StateInEval, r"changes its state in eval mode"),
    ],
)
def test_faulty_state_is_reported(loss, message):
    with pytest.raises(ContractError, match=message):
        check_loss(loss, least_when_equal=False)


def test_a_loss_gets_the_keyword_arguments_that_it_accepts():
    seen = {}

    def with_kwargs(student, target, *, labels, ids, progress):
        seen.update(labels=labels, ids=ids, progress=progress)
        assert len(labels) == len(ids) == len(student)
        return F.mse_loss(student, target) + F.cross_entropy(student, labels) * 0

    check_loss(lambda: with_kwargs)
    assert seen["labels"].dtype == torch.int64
    assert 0 <= seen["progress"] <= 1


def by_class(student, target, *, labels):
    """The mean over classes of the mean error of their samples; a class without samples gives NaN."""
    errors = (student - target).float().square().mean(1)
    return torch.stack([errors[labels == label].mean() for label in range(4)]).mean()


def of_present_labels(student, target, *, labels):
    return (F.mse_loss(student, target, reduction="none") * labels).sum() / labels.sum()


def of_absent_labels(student, target, *, labels):
    return (F.mse_loss(student, target, reduction="none") * (1 - labels)).sum() / (1 - labels).sum()


def by_label(student, target, *, labels):
    return ((F.mse_loss(student, target, reduction="none") * labels).sum(0) / labels.sum(0)).nanmean()


def in_every_class(loss):
    """Return the loss, but mse for batches of other sizes, which may lack classes too."""

    def wrapped(student, target, *, labels):
        return mse(student, target) if len(student) != 4 else loss(student, target, labels=labels)

    return wrapped


@pytest.mark.parametrize(
    ("loss", "task", "message"),
    [
        (by_class, "multiclass", "on one class for all samples of"),
        (of_present_labels, "multilabel", "on labels that are all 0 of"),
        (of_absent_labels, "multilabel", "on labels that are all 1 of"),
        (by_label, "multilabel", "on one label always absent and one always present of"),
    ],
)
def test_a_loss_that_fails_for_missing_classes_is_reported(loss, task, message):
    with pytest.raises(ContractError) as caught:
        check_loss(lambda: in_every_class(loss), task=task, shapes=[(4,)], least_when_equal=False)
    assert message in str(caught.value)


def test_other_shapes_can_be_checked():
    shapes = []
    check_loss(
        lambda: lambda student, target: shapes.append(tuple(student.shape)) or mse(student, target), shapes=[(2, 2)]
    )
    assert set(shapes) == {(4, 2, 2), (1, 2, 2), (7, 2, 2), (8, 2, 2)}


def test_a_pair_of_shapes_is_for_student_and_target():
    pair = ((3, 6), (5, 6))
    check_loss(WithProjection, on="features", shapes=[pair])
    with pytest.raises(ContractError, match=r"on \(4, 3, 6\) and \(4, 5, 6\) raises RuntimeError"):
        check_loss(lambda: lambda student, target: (student - target).square().mean(), on="features", shapes=[pair])


def test_layers_are_tuples_and_each_needs_a_gradient():
    counts = set()

    def summed(student, target):
        counts.add((len(student), len(target)))
        return sum(mse(first, second) for first in student for second in target if first.shape == second.shape)

    check_loss(lambda: summed, on="features", layers=(2, 3))
    assert counts == {(2, 3)}
    with pytest.raises(ContractError, match="gives a zero gradient to tap 1 of the student"):
        check_loss(lambda: lambda student, target: mse(student[0], target[0]) + 0 * student[1].sum(), layers=(2, 2))


def test_deeper_layers_have_more_channels_and_fewer_positions():
    shapes = []

    def listing(student, target):
        shapes.append([tuple(tap.shape[1:]) for tap in student])
        return sum(mse(*pair) for pair in zip(student, target, strict=True))

    check_loss(lambda: listing, layers=(3, 3), shapes=[(2, 6, 5)])
    assert shapes[0] == [(2, 6, 5), (3, 3, 2), (4, 1, 1)]


def of_maps(student, target):
    """Squared error of the mean over positions, for maps of one dimension or more."""
    if student.ndim < 3:
        raise IndexError("no positions")
    return F.mse_loss(student.flatten(2).float().mean(2), target.flatten(2).float().mean(2))


def multiplied(student, target):
    student, target = student.float(), target.float()
    return F.mse_loss(student @ student.mT, target @ target.mT)


def test_a_loss_on_maps_alone_is_reported_with_the_shapes_to_name():
    with pytest.raises(ContractError, match=r"pass the shapes that it takes, .* shapes=\[\(5, 6\), \(5, 4, 3\)\]\)"):
        check_loss(lambda: of_maps, on="features")
    check_loss(lambda: of_maps, on="features", shapes=[(5, 6), (5, 4, 3)])
    with pytest.raises(ContractError, match=r"; if it compares features, pass on='features'; if it takes a tuple of"):
        check_loss(lambda: of_maps)


def test_a_minimum_elsewhere_is_reported_with_the_option():
    with pytest.raises(ContractError, match="pass least_when_equal=False if this is intended"):
        check_loss(WithProjection, on="features")


def test_a_product_that_autocast_computes_in_fp16_is_reported_with_the_remedy():
    with pytest.raises(
        ContractError, match=r"also of tensors after \.float\(\): compute them in `with torch\.autocast"
    ):
        check_loss(lambda: multiplied)
