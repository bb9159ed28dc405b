"""A check refuses losses whose target must be probabilities, and names what is not a finite number."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Match, Net, Tap, Teachers, TorchData, Truth, check
from kdkit.losses import Masked, PerTeacher, ReverseKL, SoftTargets
from tests.helpers.open_stages import only_problem
from tests.helpers.tiny import Mlp, one_stage, plain_goal, samples, teacher_and_student, tiny_net


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(),
            r"must be probabilities, but these are numbers from -.* to .*; use kdkit.losses",
        ),
        (F.cross_entropy, r"must be probabilities, .*; use kdkit.losses.SoftTargets\(temperature=1\), which takes the"),
        (nn.BCEWithLogitsLoss(), r"must be probabilities, .*; use kdkit.losses.PerLabelSoftTargets\(temperature=1\)"),
        (nn.KLDivLoss(reduction="batchmean"), r"takes log-probabilities of the student, .* and probabilities"),
        (nn.KLDivLoss(log_target=True), r"of the student, .* and log-probabilities of the teacher, but got"),
        (nn.PoissonNLLLoss(), r"must be counts, but these are numbers from -.*; use a loss on numbers"),
        (nn.SoftMarginLoss(), r"must be labels of 1 and -1, but"),
    ],
)
def test_a_loss_of_torch_on_probabilities_or_labels_refuses_the_logits_of_a_teacher(loss, message):
    teacher, student = teacher_and_student()
    assert re.search(message, only_problem(one_stage(student, plain_goal() + Match(teacher, loss))))


def test_labels_of_some_samples_alone_need_another_form_than_a_mask():
    truth = Truth(Masked(nn.CrossEntropyLoss(), mask=lambda inputs: inputs[:, 0] > -9))
    problem = only_problem(one_stage(tiny_net("student"), truth))
    assert "Masked compares numbers, not classes: give samples that should not count the ignore_index" in problem


class ByHand(nn.Module):
    """A loss with the mistake that KLDivLoss takes log-probabilities of the student."""

    def __init__(self):
        super().__init__()
        self.divergence = nn.KLDivLoss(reduction="batchmean")

    def forward(self, student, target):
        return self.divergence(student.softmax(1), target.softmax(1))


OF_KL = "calls kl_div, which may be a mistake: it takes log-probabilities of the student, .*, and probabilities of the"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (ByHand(), f"ByHand {OF_KL}"),
        (lambda s, t: F.kl_div(s.log_softmax(1), t, reduction="batchmean"), OF_KL),
        (lambda s, t: F.kl_div(s.log_softmax(0), t.softmax(0), reduction="batchmean"), "over the samples; pass dim=1"),
        (lambda s, t: F.nll_loss(s, t.argmax(1)), "calls nll_loss, .* log-probabilities, such as those of log_soft"),
        (lambda s, t: F.cross_entropy(s, target=t), "calls cross_entropy, .* its target must be probabilities"),
        (lambda s, t: F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean"), None),
        (lambda s, t: F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="sum", log_target=True), None),
        (lambda s, t: F.cross_entropy(s, t.softmax(1)), None),
        (lambda s, t: torch.func.vmap(lambda a, b: F.kl_div(a, b, reduction="sum"))(s, t.softmax(1)).mean(), None),
    ],
)
def test_a_notice_names_the_likely_mistake_of_a_loss_by_hand(loss, message):
    teacher, student = teacher_and_student()
    plan = check(one_stage(student, plain_goal() + Match(teacher, loss)))
    notices = [text for text in (*plan.problems, *plan.notices) if "may be a mistake" in text]
    assert len(plan.problems) == (bool(notices) and "is nan at the first step" in notices[0])
    assert len(notices) == (message is not None)
    assert message is None or re.search(message, notices[0])


def kl_over(dim):
    return lambda s, t: F.kl_div(s.log_softmax(dim), t.softmax(dim), reduction="batchmean")


def with_tokens_second(student, target):
    return kl_over(-1)(student.movedim(1, -1), target.movedim(1, -1))


@pytest.mark.parametrize(("loss", "is_wrong"), [(kl_over(-1), True), (kl_over(1), False), (with_tokens_second, False)])
def test_a_softmax_over_positions_instead_of_classes_is_a_likely_mistake(loss, is_wrong):
    rows = torch.utils.data.TensorDataset(torch.randn(8, 4, 6), torch.arange(48).reshape(8, 6) % 3)
    teacher, student = Net("teacher", nn.Conv1d(4, 3, 1), trained=True), Net("student", nn.Conv1d(4, 3, 1))
    notices = check(one_stage(student, plain_goal() + Match(teacher, loss), TorchData(rows, rows))).notices
    assert ["over the positions, and outputs are (batch, classes, *positions)" in text for text in notices] == (
        [True] * is_wrong
    )


def test_labels_may_be_more_than_probabilities_in_a_loss_by_hand():
    def weighted(student, labels):
        return F.cross_entropy(student, 3 * F.one_hot(labels, 3).float())

    plan = check(one_stage(tiny_net("student"), Truth(weighted)))
    assert not plan.problems
    assert not [notice for notice in plan.notices if "mistake" in notice]


def test_classes_that_are_floats_are_named_by_the_loss_that_does_not_fit():
    rows = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8.0) % 3)
    for loss in (nn.MSELoss(), nn.CrossEntropyLoss()):
        problem = only_problem(one_stage(tiny_net("student"), Truth(loss), TorchData(rows, rows)))
        assert "labels that are floats are numbers (regression); if they are classes, make them integers" in problem


def test_weights_of_classes_from_an_array_are_named_with_the_remedy():
    truth = Truth(nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64)))
    problem = only_problem(one_stage(tiny_net("student"), truth))
    assert problem.endswith("; its weight is float64, as arrays of NumPy are: convert it with .float()")


def test_labels_of_positions_that_a_loss_cannot_take_are_explained():
    def dice(student, labels):
        return (student.softmax(1) * F.one_hot(labels, 3).movedim(-1, 1)).mean()

    inputs, labels = torch.randn(8, 4, 6), torch.arange(48).reshape(8, 6) % 3
    partly = torch.where(labels == 2, -100, labels)
    cases = {
        "the label -100 means that there is none": partly,
        "if they are classes, make them integers": labels.float(),
    }
    for advice, rows in cases.items():
        splits = [torch.utils.data.TensorDataset(inputs, rows)] * 2
        data = TorchData(*splits, classes=3)
        student = Net("student", nn.Conv1d(4, 3, 1))
        assert advice in only_problem(one_stage(student, Truth(dice), data))


def test_the_line_of_a_loss_that_raises_is_named():
    def misspelt(student, labels):
        return F.cross_entropy(student, labels) + student.maen()

    problem = only_problem(one_stage(tiny_net("student"), Truth(misspelt)))
    assert re.search(r"has no attribute 'maen' \(test_term_problem\.py, line \d+\)$", problem)


def test_features_of_different_shapes_need_a_projector():
    teacher, student = tiny_net("teacher", hidden=7, trained=True), tiny_net("student", seed=1)
    taps = {"student": Tap(student.module.norm), "target": Tap(teacher.module.norm)}
    problem = only_problem(one_stage(student, plain_goal() + Match(teacher, F.mse_loss, **taps)))
    assert problem.endswith("; kdkit.losses.Hint() maps features to the shape of the other side")


def test_a_loss_for_each_teacher_is_checked_as_well():
    teacher, student = teacher_and_student()
    both = Teachers(teacher, tiny_net("second", seed=3, trained=True))
    problem = only_problem(one_stage(student, plain_goal() + Match(both, PerTeacher(nn.CrossEntropyLoss()))))
    assert "its target must be probabilities, but these are numbers from -" in problem


class Probabilities(Mlp):
    """A network whose outputs are probabilities, or the logarithms of probabilities."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(super().forward(inputs), dim=1)


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (nn.CrossEntropyLoss(), None, F.softmax),
        (nn.BCEWithLogitsLoss(), None, F.softmax),
        (nn.KLDivLoss(reduction="batchmean"), F.log_softmax, F.softmax),
        (nn.KLDivLoss(reduction="batchmean", log_target=True), F.log_softmax, F.log_softmax),
        (nn.BCELoss(), F.softmax, F.softmax),
        (nn.MSELoss(), None, None),
        (nn.HuberLoss(), None, None),
    ],
)
def test_a_loss_of_torch_takes_the_probabilities_of_a_teacher(loss, student, teacher):
    nets = [
        Net(name, Mlp() if function is None else Probabilities(function), trained=name == "teacher")
        for name, function in (("student", student), ("teacher", teacher))
    ]
    check(one_stage(nets[0], plain_goal() + Match(nets[1], loss))).require()


def test_a_teacher_with_a_weight_that_is_not_finite_is_named():
    teacher, student = teacher_and_student()
    with torch.no_grad():
        teacher.module.head.weight[0, 0] = torch.nan
    problem = only_problem(one_stage(student, plain_goal() + Match(teacher, SoftTargets())))
    assert (
        "is nan at the first step: the outputs of 'teacher' for samples 0, 1, 2, 3 (4 of 4 in the batch) are" in problem
    )
    assert problem.endswith("or compute or cache the outputs in another precision: fp16 ends at 65504")


class Masking(nn.Module):
    """A policy that masks its last action."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs):
        return self.module(inputs).masked_fill(torch.tensor([False, False, True]), -torch.inf)


@pytest.mark.parametrize(
    ("masking", "term"),
    [
        ("student", lambda teacher: 1.0 * Truth(nn.CrossEntropyLoss())),  # the label of a sample is masked
        ("teacher", lambda teacher: 1.0 * Match(teacher, ReverseKL())),
    ],
)
def test_masked_classes_that_make_a_loss_infinite_are_not_taken_for_wrong_weights(masking, term):
    nets = {
        name: Net(name, Masking(Mlp()) if name == masking else Mlp(), trained=name == "teacher")
        for name in ("teacher", "student")
    }
    problem = only_problem(one_stage(nets["student"], term(nets["teacher"])))
    assert "is inf at the first step: the outputs of" in problem
    assert f"{masking!r} for samples 0, 1, 2, 3 (4 of 4 in the batch) mask classes with -inf, and a loss may" in problem
    assert "weights" not in problem


def test_a_label_that_a_student_masks_is_not_blamed_on_a_teacher_of_another_term():
    teacher, student = (Net(name, Masking(Mlp()), trained=name == "teacher") for name in ("teacher", "student"))
    soft = Match(teacher, SoftTargets())
    problem = only_problem(one_stage(student, Truth(nn.CrossEntropyLoss()) + soft))
    assert "term 'truth': CrossEntropyLoss is inf at the first step: the outputs of 'student' for samples" in problem


def test_inputs_that_are_not_finite_are_named_before_the_first_step():
    split = samples()
    split.tensors[0][2, 1] = torch.nan
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), TorchData(split, samples(), samples())))
    assert "CrossEntropyLoss is nan at the first step: the inputs of samples 2 (1 of 4 in the batch) are not" in problem


class Scaled(Mlp):
    """A network with a tensor that is not a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = torch.ones(3)

    def forward(self, inputs):
        return super().forward(inputs) * self.scale


def scaled(batch):
    return (batch.inputs * torch.ones(4),), {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("student", "loss"),
    [
        (lambda: tiny_net("student"), partial(F.cross_entropy, weight=torch.tensor([5.0, 1.0, 0.1]))),
        (lambda: Net("student", Scaled()), nn.CrossEntropyLoss()),
        (lambda: Net("student", Mlp(), view=scaled), nn.CrossEntropyLoss()),
    ],
    ids=["loss", "network", "view"],
)
def test_a_tensor_of_user_code_that_is_not_on_the_gpu_is_named_with_the_remedy(student, loss):
    problems = check(one_stage(student(), Truth(loss)), device="cuda").problems
    assert "moves the parameters and buffers of modules to cuda:0: make the other tensor a buffer" in problems[0]
