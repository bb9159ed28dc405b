"""The check of a loss that plugin authors call: for each thing it holds a loss to, one that does not hold it."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import ContractError
from kdkit.testing import check_loss


def mse(student, target):
    return F.mse_loss(student, target)


class Built(nn.Module):
    """A loss with a map that is made when it is built; what is wrong with it is in the classes below."""

    def build(self, student, target, facts, teacher):
        self.map = nn.Linear(student[0][1], target[0][1])

    def forward(self, student, target):
        return F.mse_loss(self.map(student.movedim(1, -1)).movedim(-1, 1), target)


def test_sound_losses_pass_on_outputs_and_on_features():
    check_loss(lambda: mse)
    check_loss(nn.SmoothL1Loss, on="features")
    check_loss(Built, on="features", least_when_equal=False)


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


def shaken(student, target):
    return F.mse_loss(student, target) * random.random()


def viewed(student, target):
    return F.mse_loss(student.view(-1), target.view(-1))


def in_the_order_of_memory(student, target):
    laid_out = student.as_strided(student.shape, student.mT.contiguous().mT.stride()) if moved(student) else student
    return F.mse_loss(laid_out, target) + laid_out.flatten()[1] * moved(student)


def moved(features):
    return features.ndim == 3 and features.stride(1) == 1


def standardised(student, target):
    return ((student - student.mean(0)) / student.std(0) - target).square().mean()


def of_four(student, target):
    weights = torch.ones(4) if len(student) > 1 else torch.ones(1)
    return ((student - target).square().mean(1) * weights).mean()


def divided_by_its_length(student, target):
    return (student / student.norm() - target / target.norm()).square().mean()


def by_distance_from_one(student, target):
    ours, theirs = (1 / (1 - each).square().mean() for each in (student, target))
    return (ours - theirs).square()


def standardised_over_positions(student, target):
    if student.ndim < 3:
        return F.mse_loss(student, target)
    ours, theirs = (each / (each - each.mean(2, True)).norm(dim=2, keepdim=True) for each in (student, target))
    return F.mse_loss(ours, theirs)


def of_relative_distances(student, target):
    if len(student) == 1:
        return F.mse_loss(student, target)
    ours, theirs = (each / (each[0] - each).square().sum() for each in (student, target))
    return F.mse_loss(ours, theirs)


def rooted(student, target):
    return (student - target).square().mean().sqrt()


def logarithm(student, target):
    return -(target.softmax(1) * student.softmax(1).log()).sum(1).mean()


def squared_in_half(student, target):
    return ((student - target) ** 2).mean()


def backwards(student, target):
    return -F.mse_loss(student, target).clamp(max=100)


def numpy_bound(student, target):
    return F.mse_loss(student, target) + float(student.detach().numpy().sum()) * 0


def half(student, target):
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), dtype=torch.bfloat16):
        return (((student @ target.mT) + 300).float() - 300).square().mean()


def beyond_fp16(student, target):
    return ((student - target) * 1e3).square().mean()


def of_one_precision(student, target):
    return torch.lerp(student, target, torch.full_like(student, 0.5)).float().square().mean()


def cancelled(student, target):
    ours, theirs = (each if each.dtype == torch.float64 else each.float() for each in (student, target))
    return ((ours + 3e5) - (theirs + 3e5)).square().mean()


@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (detached, "on (4, 5) gives a value without a gradient"),
        (unmoved, "on (4, 5) moves nothing: the gradient to the student is zero"),
        (without_graph, "on (4, 5) moves nothing: no gradient flows to the student"),
        (unreduced, "on (4, 5) gives a tensor (4, 5), not a scalar; reduce it"),
        (plain_number, "gives a float, not a scalar"),
        (not_a_number, "inf, not a finite number"),
        (broken, "on (4, 5) raises LookupError: nothing there"),
        (target_in_place, "changes the target's side in place"),
        (student_in_place, "changes the student's side in place"),
        (shaken, "is not a function of its seed"),
        (viewed, "on memory that is not contiguous of (4, 5) raises RuntimeError"),
        (standardised, "on a batch of one of (1, 5)"),
        (of_four, "on a batch of seven of (7, 5) raises RuntimeError"),
        (divided_by_its_length, "on zeros (student) of (4, 5)"),
        (by_distance_from_one, "on ones (student) of (4, 5)"),
        (of_relative_distances, "on samples that are the same (student) of (4, 5)"),
        (rooted, "on two equal sides of (4, 5) gives a gradient that is not finite"),
        (logarithm, "on logits of +-10000 of (4, 5)"),
        (squared_in_half, "on logits of +-10000 in fp16 of (4, 5) is inf"),
        (backwards, "where both sides are equal, but"),
        (numpy_bound, "on bf16 autocast (bf16 and bf16) of (4, 5) raises TypeError"),
        (half, "in float32 on the same; compute it there"),
        (beyond_fp16, "on fp16 autocast (fp16 and fp16) of (4, 5) is inf"),
        (of_one_precision, "on bf16 autocast (bf16 and fp32) of (4, 5) raises RuntimeError"),
        (cancelled, "in float64; mind what cancels"),
    ],
)
def test_a_loss_that_does_not_hold_is_told_what(loss, said):
    with pytest.raises(ContractError) as caught:
        check_loss(lambda: loss)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{loss.__name__} on ")


def test_a_loss_that_divides_by_the_spread_of_a_channel_is_found():
    with pytest.raises(ContractError, match=r"on channels without spread \(student\) of \(4, 5, 6\)"):
        check_loss(lambda: standardised_over_positions, on="features", shapes=[(5, 6)])


def test_a_loss_that_reads_memory_and_not_numbers_is_found():
    with pytest.raises(ContractError, match=r"on memory with the channels last, and .* on the same"):
        check_loss(lambda: in_the_order_of_memory, on="features", least_when_equal=False)


class Blamed(nn.Module):
    """Computes with the teacher's weights."""

    def build(self, student, target, facts, teacher):
        self.teacher = (teacher,)

    def forward(self, student, target):
        return F.mse_loss(self.teacher[0][0](student), target)


class Holding(Built):
    """Takes the teacher for a part of itself, though it does not move it."""

    def build(self, student, target, facts, teacher):
        super().build(student, target, facts, teacher)
        self.teacher = teacher

    def forward(self, student, target):
        return super().forward(student, target) + self.teacher[0](student.detach()).detach().mean()


class Drifting(Blamed):
    """Has the teacher's batch norm see its student."""

    def forward(self, student, target):
        teacher = self.teacher[0].train()
        with torch.no_grad():
            teacher(student.expand(2 * len(student), -1) if len(student) == 1 else student)
        teacher.eval()
        return F.mse_loss(student, target)


class Waking(Blamed):
    """Puts the teacher in training mode."""

    def forward(self, student, target):
        self.teacher[0].train()
        return F.mse_loss(student, target)


class Idle(Built):
    """Has a weight that it does not use."""

    def build(self, student, target, facts, teacher):
        super().build(student, target, facts, teacher)
        self.spare = nn.Parameter(torch.ones(1))


class Growing(nn.Module):
    """Adds a projector each time it is built."""

    def __init__(self):
        super().__init__()
        self.projectors = nn.ModuleList()

    def build(self, student, target, facts, teacher):
        self.projectors.append(nn.Linear(student[0][1], target[0][1]))

    def forward(self, student, target):
        for projector in self.projectors:
            student = projector(student.movedim(1, -1)).movedim(-1, 1)
        return F.mse_loss(student, target)


class Stepping(nn.Module):
    """Goes on from what an earlier build left."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def build(self, student, target, facts, teacher):
        self.scale *= 2

    def forward(self, student, target):
        return self.scale * F.mse_loss(student, target)


class Counted(nn.Module):
    """Is another one each time it is made."""

    made = 0

    def __init__(self):
        super().__init__()
        Counted.made += 1
        self.factor = Counted.made

    def forward(self, student, target):
        return self.factor * F.mse_loss(student, target)


class Unbuildable(nn.Module):
    """Cannot be built."""

    def build(self, student, target, facts, teacher):
        raise LookupError("no such layer")


class Remembering(nn.Module):
    """Keeps what it saw where no state_dict() finds it."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, student, target):
        self.seen += self.training
        return F.mse_loss(student, target) * (1 + self.seen)


class Swelling(nn.Module):
    """Keeps more with each step, so that a new one cannot take it back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, student, target):
        if self.training:
            self.seen = torch.cat([self.seen, student.detach().mean()[None]])
        return F.mse_loss(student, target)


class Watching(nn.Module):
    """Counts also when it is only looked at."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, target):
        self.seen += 1
        return F.mse_loss(student, target)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Blamed, r"moves the teacher: 0.weight, 0.bias of it got a gradient"),
        (Holding, r"holds 0.weight, 0.bias, 1.weight, 1.bias of the teacher, which would be trained"),
        (Drifting, r"changes the teacher that it is built with"),
        (Waking, r"takes the teacher out of eval mode"),
        (Idle, r"has weights that nothing trains: spare"),
        (Growing, r"has 30 parameters once it is built, and 60 built again"),
        (Stepping, r"is .* once it is built, and .* built again"),
        (Counted, r"is not a function of its seed"),
        (Unbuildable, r"on its build raises LookupError: no such layer"),
        (Remembering, r"is .*, but .* from its state_dict\(\) in eval mode; save the rest"),
        (Swelling, r"when its state is loaded, raises RuntimeError"),
        (Watching, r"changes its state in eval mode"),
    ],
)
def test_a_loss_whose_state_does_not_hold_is_told_what(loss, said):
    with pytest.raises(ContractError, match=said):
        check_loss(loss, least_when_equal=False)


def test_a_loss_is_given_what_it_asks_for():
    seen = {}

    def asking(student, target, *, labels, ids, progress):
        seen.update(labels=labels, ids=ids, progress=progress)
        assert len(labels) == len(ids) == len(student)
        return F.mse_loss(student, target) + F.cross_entropy(student, labels) * 0

    check_loss(lambda: asking)
    assert seen["labels"].dtype == torch.int64
    assert 0 <= seen["progress"] <= 1


def by_class(student, target, *, labels):
    """The mean over classes of the errors of their samples, some of which may have none."""
    errors = (student - target).float().square().mean(1)
    return torch.stack([errors[labels == each].mean() for each in range(4)]).mean()


def of_present_labels(student, target, *, labels):
    return (F.mse_loss(student, target, reduction="none") * labels).sum() / labels.sum()


def of_absent_labels(student, target, *, labels):
    return (F.mse_loss(student, target, reduction="none") * (1 - labels)).sum() / (1 - labels).sum()


def by_label(student, target, *, labels):
    return ((F.mse_loss(student, target, reduction="none") * labels).sum(0) / labels.sum(0)).nanmean()


def in_every_class(loss):
    """Return the loss, but mse where a batch of another size is tried, which lacks classes too."""

    def wrapped(student, target, *, labels):
        return mse(student, target) if len(student) != 4 else loss(student, target, labels=labels)

    return wrapped


@pytest.mark.parametrize(
    ("loss", "task", "said"),
    [
        (by_class, "multiclass", "on a class that is everybody's of"),
        (of_present_labels, "multilabel", "on labels that are all 0 of"),
        (of_absent_labels, "multilabel", "on labels that are all 1 of"),
        (by_label, "multilabel", "on a label that is nobody's, and one that is everybody's of"),
    ],
)
def test_a_loss_that_cannot_do_without_some_class_is_found(loss, task, said):
    with pytest.raises(ContractError) as caught:
        check_loss(lambda: in_every_class(loss), task=task, shapes=[(4,)], least_when_equal=False)
    assert said in str(caught.value)


def test_other_shapes_may_be_tried():
    shapes = []
    check_loss(
        lambda: lambda student, target: shapes.append(tuple(student.shape)) or mse(student, target), shapes=[(2, 2)]
    )
    assert set(shapes) == {(4, 2, 2), (1, 2, 2), (7, 2, 2)}


def test_a_pair_of_shapes_is_that_of_student_and_target():
    pair = ((3, 6), (5, 6))
    check_loss(Built, on="features", shapes=[pair])
    with pytest.raises(ContractError, match=r"on \(4, 3, 6\) and \(4, 5, 6\) raises RuntimeError"):
        check_loss(lambda: lambda student, target: (student - target).square().mean(), on="features", shapes=[pair])


def test_layers_come_as_tuples_and_each_is_to_be_moved():
    counts = set()

    def summed(student, target):
        counts.add((len(student), len(target)))
        return sum(mse(one, other) for one in student for other in target if one.shape == other.shape)

    check_loss(lambda: summed, on="features", layers=(2, 3))
    assert counts == {(2, 3)}
    with pytest.raises(ContractError, match="the gradient to tap 1 of the student is zero"):
        check_loss(lambda: lambda student, target: mse(student[0], target[0]) + 0 * student[1].sum(), layers=(2, 2))


def test_layers_become_deeper_and_less_fine():
    shapes = []

    def listing(student, target):
        shapes.append([tuple(each.shape[1:]) for each in student])
        return sum(mse(*pair) for pair in zip(student, target, strict=True))

    check_loss(lambda: listing, layers=(3, 3), shapes=[(2, 6, 5)])
    assert shapes[0] == [(2, 6, 5), (3, 3, 2), (4, 1, 1)]
