"""A recipe is checked: all problems show before the first step, and no network is changed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, StackDataset, TensorDataset

from kdkit import (
    AverageWeights,
    CosineRamp,
    Ema,
    Inputs,
    Match,
    MetricResult,
    Net,
    Parallel,
    Recipe,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    Unlabelled,
    check,
    model_loss,
    run,
)
from kdkit.engine.run_record import notices
from kdkit.engine.storage.history import KEYS
from kdkit.errors import CheckError, DataError, RecipeError
from kdkit.losses import DKD, RKD, Cosine, Hint, LogitMSE, Masked, SoftTargets
from kdkit.metrics import R2, Accuracy, BootstrapInterval, Brier, CrossEntropy, MacroF1, MeanAveragePrecision, MeanIoU
from kdkit.metrics.base import WithoutThresholds
from tests.helpers.callbacks import Recorder
from tests.helpers.open_stages import hidden_taps, only_problem
from tests.helpers.tiny import (
    Mlp,
    hooks_of,
    one_stage,
    plain_goal,
    same_state,
    samples,
    state_of,
    teacher_and_student,
    tiny_data,
    tiny_net,
)

TRAINING = Training(epochs=1, batch_size=4)


def test_the_plan_of_a_valid_recipe_has_a_summary_of_each_term():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    features = Match(teacher, Hint(), **hidden_taps(student, teacher))
    objective = 0.3 * plain_goal() + CosineRamp(end=0.7) * Match(teacher, SoftTargets()) + features
    plan = check(one_stage(student, objective))
    plan.require()
    truth, soft, hint = plan.terms[0]
    assert (truth.label, truth.teacher, truth.weight) == ("truth", None, (0.3, 0.3))
    assert soft.weight == (0.0, 0.7)
    assert soft.student == "outputs (4, 3)"
    assert (hint.student, hint.target) == ("hidden (4, 5)", "hidden (4, 7)")
    assert hint.parameters == 5 * 7 + 7  # weight and bias of the projector
    assert plan.nets == (teacher, student)


class Structured(nn.Module):
    """A network that returns a dict, with a layer that returns a tuple."""

    class Layer(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs), None

    def __init__(self):
        super().__init__()
        self.layer = self.Layer(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs):
        logits = self.head(self.layer(inputs)[0])
        return {"loss": logits.square().mean(), "scores": 2 * logits, "logits": logits}


def test_the_plan_shows_the_elements_that_are_taken():
    teacher = Net("teacher", Structured(), trained=True)
    student = Net("student", Structured(), element="scores")
    own = Truth(model_loss, "own loss", student=Tap(student.module, element="loss"))
    hint = Match(teacher, Hint(), student=Tap(student.module.layer), target=Tap(teacher.module.layer, element=0))
    plan = check(one_stage(student, plain_goal() + own + Match(teacher, SoftTargets()) + hint))
    plan.require()
    assert [(term.student, term.target) for term in plan.terms[0]] == [
        ("outputs scores (4, 3)", "labels (4,)"),
        ("loss of outputs ()", ""),
        ("outputs scores (4, 3)", "outputs logits (4, 3)"),
        ("element 0 of layer (4, 5)", "element 0 of layer (4, 5)"),
    ]


class Tokens(nn.Module):
    """A network on two tokens of two features."""

    def __init__(self):
        super().__init__()
        self.split = nn.Unflatten(1, (2, 2))
        self.linear = nn.Linear(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.linear(self.split(inputs)).mean(1))


def test_the_plan_shows_channels_that_are_last():
    teacher, student = Net("teacher", Tokens(), trained=True), Net("student", Tokens())
    taps = {"student": Tap(student.module.linear), "target": Tap(teacher.module.linear)}
    plan = check(one_stage(student, plain_goal() + Match(teacher, Hint(), **taps)))
    assert plan.terms[0][1].student == "linear channels last (4, 6, 2)"
    assert plan.terms[0][1].target == "linear channels last (4, 6, 2)"
    assert plan.notices == ()


def test_channels_that_are_not_certain_are_a_notice_of_the_plan_and_of_the_run():
    teacher, student = Net("teacher", Tokens(), trained=True), Net("student", Tokens())
    # A function may return anything.
    target = Tap(teacher.module.linear, element=lambda tokens: tokens[:, :1])
    recipe = one_stage(
        student, plain_goal() + Match(teacher, Hint(), student=Tap(student.module.linear), target=target)
    )
    (notice,) = check(recipe).notices
    assert "the tap on Linear 'linear' of net 'teacher' takes (4, 1, 6) as (batch, channels, ...)" in notice
    recorder = Recorder()
    run(recipe, device="cpu", callbacks=[recorder])
    assert notice in recorder.notices


def test_the_tap_of_a_term_on_the_labels_must_be_on_its_net():
    student = tiny_net("student")
    term = Truth(nn.CrossEntropyLoss(), student=Tap(tiny_net("other").module.head))
    assert "the student tap is on a Linear that is not a part of net 'student'" in only_problem(
        one_stage(student, term)
    )


# Teachers, names and stages


def test_an_untrained_teacher_is_a_problem():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    problem = only_problem(one_stage(student, Match(teacher, SoftTargets())))
    assert "stage 'student': net 'teacher' teaches, but it is not trained in an earlier stage" in problem


def test_a_teacher_that_is_trained_in_a_later_stage_is_a_problem():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    stages = [Stage({student: Match(teacher, SoftTargets())}, TRAINING), Stage({teacher: plain_goal()}, TRAINING)]
    assert "is not trained in an earlier stage" in only_problem(Recipe(data=tiny_data(), schedule=stages))


def test_a_net_that_is_trained_in_an_earlier_stage_can_teach():
    schedule = Parallel(tiny_net("t"), tiny_net("s"), truth=plain_goal(), kd_loss=SoftTargets(), training=TRAINING)
    check(Recipe(data=tiny_data(), schedule=schedule)).require()  # raises CheckError if there is a problem


def test_a_net_that_is_matched_to_itself_is_a_problem():
    student = tiny_net("student", trained=True)
    problem = only_problem(one_stage(student, Match(student, SoftTargets())))
    assert "net 'student' is trained in this stage, so it cannot be matched as a frozen teacher" in problem


def test_two_nets_of_one_stage_cannot_be_frozen_teachers_of_each_other():
    first, second = tiny_net("one", trained=True), tiny_net("two", trained=True)
    stage = Stage({first: plain_goal() + Match(second, SoftTargets()), second: plain_goal()}, TRAINING)
    problem = only_problem(Recipe(data=tiny_data(), schedule=[stage]))
    assert "net 'two' is trained in this stage, so it cannot be matched as a frozen teacher" in problem


def test_two_terms_with_the_same_label_are_a_problem():
    teacher, student = teacher_and_student()
    objective = Match(teacher, SoftTargets(), label="soft") + Match(teacher, SoftTargets(temperature=2), label="soft")
    assert "2 terms are called 'soft'; distinguish them with label='...'" in only_problem(one_stage(student, objective))
    data = TorchData(DataLoader(samples(), batch_size=2), samples(), classes=3)
    assert check(one_stage(student, objective, data)).loader_batch == 2  # also if nothing was read


def test_two_nets_with_the_same_name_are_a_problem():
    teacher, student = tiny_net("net", trained=True), tiny_net("net")
    problems = check(one_stage(student, Match(teacher, SoftTargets()))).problems
    assert any("2 nets are called 'net'" in problem for problem in problems)
    teacher = tiny_net("Net", trained=True)  # the same file as that of "net" on Windows and macOS
    problems = check(one_stage(student, Match(teacher, SoftTargets()))).problems
    assert any("2 nets are called 'Net' or 'net'" in problem or "'net' or 'Net'" in problem for problem in problems)


def test_two_stages_with_the_same_name_are_a_problem():
    student = tiny_net("student")
    stages = [Stage({student: plain_goal()}, TRAINING), Stage({student: plain_goal()}, TRAINING)]
    assert "2 stages are called 'student'" in only_problem(Recipe(data=tiny_data(), schedule=stages))


def test_two_classes_with_the_same_name_are_a_problem():
    recipe = one_stage(tiny_net("student"), plain_goal(), tiny_data(classes=["a", "b", "a"]))
    assert "2 classes of the data are called 'a'" in only_problem(recipe)


def test_a_schedule_without_stages_is_a_problem():
    assert "the schedule has no stages" in only_problem(Recipe(data=tiny_data(), schedule=[]))


# Taps and shapes


@pytest.mark.parametrize("side", ["student", "target"])
def test_a_tap_on_another_net_is_a_problem(side):
    teacher, student = teacher_and_student()
    taps = {**hidden_taps(student, teacher), side: Tap(Mlp().hidden)}
    problem = only_problem(one_stage(student, Match(teacher, Hint(), **taps)))
    assert f"the {side} tap is on a Linear that is not a part of net" in problem
    assert problem.endswith("; if its network was created again, create its taps and terms again too")


@pytest.mark.parametrize("side", ["student", "target"])
def test_a_tap_that_never_fires_is_a_problem_of_its_net(side):
    teacher, student = teacher_and_student()
    net = {"student": student, "target": teacher}[side]
    net.module.idle = nn.Conv1d(1, 1, 1)  # forward does not call it
    taps = {**hidden_taps(student, teacher), side: Tap(net.module.idle)}
    problem = only_problem(one_stage(student, Match(teacher, Hint(), **taps)))
    assert f"the tap on Conv1d 'idle' of net {net.name!r} never fired" in problem


def test_a_tap_that_never_fires_is_reported_for_the_right_one_of_two_students():
    teacher, first, second = tiny_net("teacher", trained=True), tiny_net("one"), tiny_net("two")
    second.module.idle = nn.Conv1d(1, 1, 1)
    match = Match(teacher, Hint(), student=Tap(second.module.idle), target=Tap(teacher.module.hidden))
    recipe = Recipe(data=tiny_data(), schedule=[Stage({first: plain_goal(), second: match}, TRAINING)])
    assert "of net 'two' never fired" in only_problem(recipe)


def test_features_that_need_a_projector_are_a_problem_without_one():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    match = Match(teacher, Hint(projector="never"), **hidden_taps(student, teacher))
    problem = only_problem(one_stage(student, match))
    assert "term 'teacher/hint': features of (5,) cannot be compared to (7,) without a projector" in problem


def test_shapes_that_a_user_defined_loss_does_not_accept_are_a_problem():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")

    def difference(student, target):
        return (student - target).square().mean()

    problem = only_problem(one_stage(student, Match(teacher, difference, **hidden_taps(student, teacher))))
    assert "difference does not accept student (4, 5) and target (4, 7): " in problem


def absolute(student, target):
    return (student - target).abs().mean()


@pytest.mark.parametrize("loss", [absolute, nn.PoissonNLLLoss(), nn.SmoothL1Loss(), nn.KLDivLoss(reduction="sum")])
def test_a_column_of_outputs_and_a_row_of_labels_are_a_problem_also_if_torch_does_not_warn(loss):
    student = Net("student", nn.Linear(4, 1))
    rows = samples("regression", 8).tensors
    data = TorchData(*(TensorDataset(rows[0], rows[1][:, 0]) for _ in range(2)), task="regression")
    recipe = Recipe(data=data, schedule=[Stage({student: Truth(loss)}, TRAINING)], metrics=(R2(),))
    with pytest.raises(CheckError, match=r"student \(4, 1\) and target \(4,\) .*broadcast"):
        run(recipe, device="cpu")


@pytest.mark.parametrize("loss", [LogitMSE(), Hint(), RKD()])
def test_outputs_without_a_column_are_a_problem_of_losses_that_need_one(loss):
    teacher, student = (Net(name, nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))) for name in ("teacher", "student"))
    rows = samples("regression", 8).tensors
    numbers, columns = (
        TorchData(*(TensorDataset(rows[0], labels) for _ in range(2)))
        for labels in (rows[1][:, 0], (rows[1][:, :1] > 0).float())
    )
    stages = [Stage({teacher: Truth(nn.MSELoss())}, TRAINING), Stage({student: Match(teacher, loss)}, TRAINING)]
    problem = only_problem(Recipe(data=numbers, schedule=stages))
    assert "a single output is (batch, 1): leave squeeze out of the network" in problem
    problem = only_problem(one_stage(student, Truth(nn.BCEWithLogitsLoss()), columns))
    assert "net 'student' has outputs of shape (batch,); a single output is (batch, 1)" in problem


def test_a_loss_that_brings_a_column_and_a_row_together_itself_is_no_problem():
    inputs, labels = samples("regression", 8).tensors
    data = TorchData(*(TensorDataset(inputs, labels[:, 0]) for _ in range(2)), task="regression")
    term = Truth(lambda outputs, labels: F.mse_loss(outputs.squeeze(1), labels))
    recipe = Recipe(data=data, schedule=[Stage({Net("student", nn.Linear(4, 1)): term}, TRAINING)], metrics=(R2(),))
    assert not check(recipe).problems


class Keeping(Mlp):
    """Keeps a computed tensor, which cannot be copied."""

    def forward(self, inputs):
        self.kept = self.hidden(inputs)
        return self.head(self.kept)


def test_a_net_that_cannot_be_copied_for_its_average_is_a_problem():
    average = AverageWeights(decay=0.9)
    assert not check(one_stage(Net("student", Keeping()), plain_goal())).problems
    problem = only_problem(one_stage(Net("student", Keeping()), plain_goal(), ema=average))
    assert "net 'student' cannot be copied, but its average is a copy" in problem


def test_a_net_whose_copy_would_call_the_original_has_no_average_and_no_baseline():
    student = tiny_net("student")
    student.module.forward = torch.enable_grad()(student.module.forward)
    problem = only_problem(one_stage(student, plain_goal(), ema=AverageWeights(decay=0.9)))
    assert "its average is a copy: 'forward' of a Mlp is a function that holds the module itself" in problem
    objective = plain_goal() + Match(tiny_net("teacher", trained=True), SoftTargets())
    with pytest.raises(RecipeError, match="its baseline is a copy: 'forward' of a Mlp is a function"):
        run(one_stage(student, objective), baseline=True, device="cpu")


class Detached(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).detach()


class Reentrant(nn.Linear):
    def forward(self, inputs):
        return checkpoint(super().forward, inputs, use_reentrant=True)  # runs without gradients


class Ungraded(nn.Linear):
    @torch.no_grad()
    def forward(self, inputs):
        return super().forward(inputs)


@pytest.mark.parametrize("layer", [Detached, Reentrant, Ungraded])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_tap_without_a_gradient_is_a_problem_though_its_projector_has_one(layer):
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    student.module.hidden = layer(4, 5)
    problem = only_problem(one_stage(student, plain_goal() + Match(teacher, Hint(), **hidden_taps(student, teacher))))
    assert "trains its own parameters only: the tensors of net 'student' have no gradient" in problem


@pytest.mark.parametrize("layer", [Detached, Ungraded])
def test_outputs_without_a_gradient_are_a_problem_with_its_cause(layer):
    student = tiny_net("student")
    student.module.head = layer(5, 3)
    problem = only_problem(one_stage(student, plain_goal()))
    assert "the tensors of net 'student' have no gradient; they are computed in torch.no_grad()" in problem


def test_a_slice_of_a_sequential_is_refused_with_the_layer_to_tap():
    module, teacher = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), tiny_net("teacher", trained=True)
    match = Match(teacher, Hint(), student=Tap(module[:2]), target=Tap(teacher.module.hidden))
    problem = only_problem(one_stage(Net("student", module), plain_goal() + match))
    assert "is not a part of net 'student'; a slice, such as module[:2], is a new module: tap the last layer" in problem


def test_a_net_that_a_later_stage_changes_by_another_one_is_a_notice():
    module = tiny_net("first").module
    first, second = Net("first", module), Net("second", module)
    stages = [Stage({first: plain_goal()}, TRAINING), Stage({second: plain_goal()}, TRAINING)]
    (notice,) = check(Recipe(data=tiny_data(), schedule=stages)).notices
    assert "stage 'second' changes net 'first', which shares parameters with net 'second'" in notice
    assert not check(Recipe(data=tiny_data(), schedule=[stages[0], replace(stages[0], name="again")])).notices


def test_shapes_that_would_be_broadcast_are_a_problem():
    teacher, student = tiny_net("teacher", trained=True, hidden=1), tiny_net("student")
    problem = only_problem(one_stage(student, Match(teacher, nn.MSELoss(), **hidden_taps(student, teacher))))
    assert "student (4, 5) and target (4, 1) have different shapes and would be broadcast" in problem
    flat = Net("flat", lambda inputs: inputs[:, 0], trained=True, version="1")
    problem = only_problem(
        one_stage(Net("student", nn.Linear(4, 1)), Match(flat, nn.MSELoss()), tiny_data("regression"))
    )
    assert "student (4, 1) and target (4,)" in problem
    assert "give both the same dimensions" in problem


# Losses


def unreduced(student, target):
    return F.cross_entropy(student, target, reduction="none")


def number(student, target):
    return 0.5


def detached(student, target):
    return F.cross_entropy(student.detach(), target)


def zero(student, target):
    return (student * 0).sum()


def not_a_number(student, target):
    return F.cross_entropy(student, target) * float("nan")


def raising(student, target):
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (unreduced, "unreduced must return a scalar, but returned a tensor (4,)"),
        (number, "number must return a scalar, but returned a float; return the tensor, without .item() or float()"),
        (lambda student, target: {"loss": student.sum()}, "a scalar, but returned a dict; return one number"),
        (nn.NLLLoss(), "takes log-probabilities, such as those of log_softmax, but got other values; use nn.Cross"),
        (detached, "detached has no effect: it has no gradient for net 'student'"),
        (zero, "zero is always zero, whatever net 'student' returns"),
        (not_a_number, "not_a_number is nan at the first step"),
        (raising, "raising does not accept student (4, 3) and target (4,): not today"),
    ],
)
def test_a_loss_that_cannot_train_the_student_is_a_problem(loss, message):
    problem = only_problem(one_stage(tiny_net("student"), Truth(loss)))
    assert problem.startswith("stage 'student': term 'truth': ")
    assert message in problem


def test_a_loss_that_is_zero_only_at_first_is_valid():
    teacher = tiny_net("teacher", trained=True)
    student = Net("student", Mlp())
    # Equal weights: the loss is zero now, but not for a student with noise added.
    student.module.load_state_dict(teacher.module.state_dict())
    teacher.module.train()

    def same(student, target):
        return F.mse_loss(student, target)

    check(one_stage(student, Match(teacher, same) + plain_goal())).require()


def test_a_loss_that_is_zero_for_the_first_samples_or_at_the_start_is_valid():
    def of_no_sample(inputs):
        return inputs[:, 0] > 1e6

    def growing(student, target, *, progress):
        return progress * F.mse_loss(student, target)

    teacher = tiny_net("teacher", trained=True)
    objective = Match(teacher, Masked(SoftTargets(), mask=of_no_sample)) + Match(teacher, growing) + plain_goal()
    check(one_stage(tiny_net("student"), objective)).require()


def test_a_loss_that_leaves_out_samples_of_which_the_teacher_is_unsure_is_valid():
    def confident(student, target):
        probability, classes = target.softmax(1).max(1)
        return ((probability >= 0.99) * F.cross_entropy(student, classes, reduction="none")).mean()

    student = tiny_net("student")
    check(one_stage(student, plain_goal() + Match(Ema(student), confident))).require()


def loss_with_requirements(*requirements):
    def loss(student, target):
        return F.cross_entropy(student, target) if target.ndim == 1 else F.mse_loss(student, target)

    loss.requires = frozenset(requirements)
    return loss


def loss_with_ids(student, target, *, ids):
    return F.cross_entropy(student, target)


@pytest.mark.parametrize("loss", [loss_with_ids, loss_with_requirements("ids")])
def test_a_loss_that_needs_ids_is_a_problem_with_a_user_defined_loader(loss):
    loader = DataLoader(samples(), batch_size=4)
    data = TorchData(loader, samples(), classes=["a", "b", "c"])
    assert "it needs sample ids" in only_problem(one_stage(tiny_net("student"), Truth(loss), data))
    check(one_stage(tiny_net("student"), Truth(loss))).require()  # a Dataset has ids


def test_a_loss_that_needs_one_class_per_sample_is_a_problem_with_multilabel_data():
    recipe = one_stage(tiny_net("student"), Truth(loss_with_requirements("hard_labels")), tiny_data("multilabel"))
    assert "it needs one class per sample, but this data is multilabel" in only_problem(recipe)


def test_a_loss_with_parameters_in_two_terms_is_a_problem():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    hint, taps = Hint(), hidden_taps(student, teacher)  # 5 to 7 features, so it has a projector
    objective = Match(teacher, hint, **taps) + Match(teacher, hint, **taps, label="again")
    problems = check(one_stage(student, objective)).problems
    message = (
        "terms 'teacher/hint' of stage 'student' and 'again' of stage 'student' share one Hint, which is built for"
    )
    assert any(message in problem for problem in problems)


def test_a_loss_whose_function_hides_the_names_of_its_arguments_is_a_problem_with_the_remedy():
    def inner(student, target, *, ids, labels):
        return (student - target).square().mean()

    def loss(student, target, **kwargs):
        return inner(student, target, **kwargs)

    teacher, student = teacher_and_student()
    problem = only_problem(one_stage(student, Match(teacher, loss)))
    assert "a loss gets the arguments that its signature names: write labels, ids instead of **kwargs" in problem


def test_a_loss_without_parameters_may_be_in_two_terms():
    teacher, student = teacher_and_student()
    mse = nn.MSELoss()
    check(one_stage(student, Match(teacher, mse) + Match(teacher, mse, label="again"))).require()


# Classes


def test_a_student_with_a_wrong_number_of_outputs_is_a_problem():
    problem = only_problem(one_stage(tiny_net("student", outputs=5), plain_goal()))
    assert "net 'student' has outputs of shape (batch, 5), but the data's 3 classes need (batch, 3)" in problem


def test_a_teacher_with_a_wrong_number_of_outputs_is_a_problem():
    teacher = tiny_net("teacher", outputs=1, trained=True)
    problem = only_problem(one_stage(tiny_net("student"), Match(teacher, SoftTargets())))
    assert "net 'teacher' has outputs of shape (batch, 1), but the data's 3 classes need (batch, 3)" in problem


@pytest.mark.parametrize("learns_labels", [True, False])
def test_outputs_that_no_label_is_compared_with_may_be_embeddings(learns_labels):
    teacher, student = tiny_net("teacher", outputs=7, trained=True), tiny_net("student", outputs=7)
    objective = Match(teacher, Cosine()) + plain_goal() if learns_labels else Match(teacher, Cosine())
    problems = check(one_stage(student, objective)).problems
    assert len(problems) == 2
    assert all(("if outputs are embeddings" in problem) != learns_labels for problem in problems)


@pytest.mark.parametrize("classes", [None, ["u", "v", "w", "x", "y", "z", "o"]])
def test_a_teacher_of_features_may_have_different_classes_and_then_has_no_metrics(classes):
    teacher, student = tiny_net("teacher", outputs=7, trained=True, classes=classes), tiny_net("student")
    recipe = one_stage(student, plain_goal() + Match(teacher, Hint(), **hidden_taps(student, teacher)))
    assert check(recipe).problems == ()
    assert check(recipe).without_metrics == {teacher}
    assert list(run(recipe, device="cpu").metrics) == ["student"]


def test_a_teacher_of_features_with_the_classes_of_the_data_has_metrics():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    objective = plain_goal() + Match(teacher, Hint(), **hidden_taps(student, teacher))
    assert not check(one_stage(student, objective)).without_metrics


def test_a_notice_says_why_a_teacher_of_other_numbers_has_no_metrics():
    rows, teacher = samples("regression", 8), tiny_net("teacher", outputs=7, trained=True)
    student = tiny_net("student", outputs=rows.tensors[1].shape[1])
    stage = Stage({student: Truth(nn.MSELoss()) + Match(teacher, Hint())}, Training(epochs=1))
    recipe = Recipe(data=TorchData(rows, rows), schedule=[stage])
    (notice,) = (notice for notice in notices(recipe, check(recipe)) if "'teacher'" in notice)
    assert notice.endswith("has no metrics: its outputs have the shape neither of those of a student nor of the labels")


def test_a_teacher_of_wider_embeddings_has_a_metric_that_takes_any_outputs():
    class Width(WithoutThresholds):
        name, any_outputs = "width", True

        def compute(self, test):
            return MetricResult(value=test.outputs.shape[1])

    teacher, student = (tiny_net(name, outputs=width, trained=width == 9) for name, width in (("t", 9), ("s", 5)))
    stage = Stage({student: 1.0 * Match(teacher, Cosine())}, Training(epochs=1))
    rows = samples()
    data = TorchData(rows, rows, task="regression")
    result = run(Recipe(data=data, schedule=[stage], metrics=(Width(),)), device="cpu")
    assert {net: metrics["width"].value for net, metrics in result.metrics.items()} == {"t": 9, "s": 5}


def test_metrics_of_packed_labels_are_tried_on_those_of_the_validation_split_if_training_has_none():
    def detector(name):  # numbers above 1, so that no box is padding
        module = nn.Sequential(nn.Linear(4, 12), nn.Softplus(), nn.Unflatten(1, (2, 6)))
        return Net(name, module, element=lambda outputs: 1 + outputs, trained=name == "teacher")

    inputs, corners = torch.randn(8, 4), torch.rand(8, 3, 2)
    boxes = TensorDataset(inputs, torch.cat([corners, corners + 1, torch.ones(8, 3, 1)], 2))
    data = TorchData(Unlabelled(TensorDataset(inputs)), boxes, task="regression")
    stage = Stage({detector("student"): 1.0 * Match(detector("teacher"), nn.MSELoss())}, Training(epochs=1))
    check(Recipe(data=data, schedule=[stage], metrics=(MeanAveragePrecision(),))).require()
    plan = check(Recipe(data=data, schedule=[stage], metrics=(R2(),)))
    (problem,) = plan.problems
    assert "metric 'r2' does not fit the validation data (regression) and net 'student'" in problem
    assert any(
        "metric 'r2' does not fit the validation data (regression) and net 'teacher'" in text for text in plan.notices
    )


def test_a_net_with_a_wrong_number_of_outputs_for_its_classes_is_a_problem():
    student = tiny_net("student", outputs=5, classes=["a", "x"])
    problem = only_problem(one_stage(student, plain_goal()))
    assert "has outputs of shape (batch, 5), but its 2 classes need (batch, 2)" in problem


def test_a_net_without_a_class_of_the_data_is_a_problem_and_no_hook_remains():
    teacher = tiny_net("teacher", trained=True)
    student = tiny_net("student", classes=["x", "y", "z"])
    objective = plain_goal() + Match(teacher, nn.MSELoss(), **hidden_taps(student, teacher))
    assert "net 'student' and the data share no class" in only_problem(one_stage(student, objective))
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0


def test_notices_of_data_that_are_one_text_are_refused():
    recipe = one_stage(tiny_net("student"), plain_goal())
    recipe.data.notices = "half of the records are of children"
    with pytest.raises(DataError, match="notices of the data must be a tuple of texts; got the text 'half of the rec"):
        run(recipe)


# Metrics


def test_an_unknown_monitor_is_a_problem_with_the_nearest_name():
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), monitor="acuracy"))
    assert "'acuracy' is not among the recipe's metrics; did you mean 'accuracy'?" in problem


def test_a_metric_with_the_name_of_another_value_of_an_epoch_is_a_problem():
    class Best(Accuracy):
        name = "best"

    recipe = one_stage(tiny_net("student"), plain_goal())
    problem = only_problem(Recipe(data=recipe.data, schedule=recipe.schedule, metrics=(Best(),)))
    assert problem == "a metric is called 'best', which is another value in the history of a run; rename it"


def test_every_value_of_an_epoch_other_than_the_metric_has_a_reserved_name():
    recipe = one_stage(tiny_net("student"), plain_goal())
    (epoch,) = run(recipe, device="cpu", gradients=1).history["student"]
    assert epoch.keys() - KEYS == {"accuracy"}


def test_a_metric_that_does_not_fit_the_data_is_a_problem():
    recipe = one_stage(tiny_net("student"), plain_goal())
    unfit = Recipe(data=recipe.data, schedule=recipe.schedule, metrics=(Accuracy(), R2()))
    assert "metric 'r2' does not fit this data (multiclass)" in only_problem(unfit)


@pytest.mark.parametrize("position_dims", [0, 1])
def test_a_wrong_method_of_an_interval_is_a_problem_before_the_run(position_dims):
    class Transposed(WithoutThresholds):
        name, accepts_positions = "share", True

        def compute(self, test):
            return MetricResult(value=0.5)

        def resampled(self, test, counts):
            return counts.mean(0), np.zeros((counts.shape[1], len(test.classes)))

    inputs = torch.randn(6, 3, *[4] * position_dims)
    samples = TensorDataset(inputs, inputs.argmax(1))
    student = Net("student", nn.Conv1d(3, 3, 1) if position_dims else nn.Linear(3, 3))
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))
    data = TorchData(samples, samples, classes=3)
    recipe = Recipe(data=data, schedule=[stage], metrics=(BootstrapInterval(Transposed()),))
    assert "resampled of metric 'share' must return Resampled(values, by_class)" in only_problem(recipe)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_metric_that_looks_up_samples_is_tried_with_ids_of_validation_data(task):
    data = tiny_data(task)
    first = int(data.validation.ids[0])
    table = np.zeros(len(data.validation))

    class LookUp(WithoutThresholds):
        name = "look_up"

        def compute(self, test):
            return MetricResult(value=float(table[test.ids - first].sum()))

    truth = {"multiclass": nn.CrossEntropyLoss(), "multilabel": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}
    recipe = one_stage(tiny_net("student"), Truth(truth[task]), data)
    assert not check(replace(recipe, metrics=(LookUp(),))).problems


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_metric_of_patients_is_tried_with_groups_of_validation_data(task):
    class Patients(WithoutThresholds):
        name = "patients"

        def compute(self, test):
            if test.groups is None:
                raise DataError("patients needs groups")
            return MetricResult(value=len(np.unique(test.groups)))

    data = tiny_data(task)
    truth = {"multiclass": nn.CrossEntropyLoss(), "multilabel": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}
    recipe = replace(one_stage(tiny_net("student"), Truth(truth[task]), data), metrics=(Patients(),))
    assert "patients needs groups" in only_problem(recipe)
    data.validation.groups = torch.arange(len(data.validation)) // 2
    assert not check(recipe).problems


def test_a_metric_that_needs_two_patients_is_tried_with_two_if_each_has_many_samples():
    class BetweenPatients(WithoutThresholds):
        name = "between_patients"

        def compute(self, test):
            first, second, *_ = (test.outputs[test.groups == group] for group in np.unique(test.groups))
            return MetricResult(value=first.mean() - second.mean())

    rows = TensorDataset(torch.randn(40, 4), torch.arange(40) % 3)
    data = TorchData(rows, rows)
    data.validation.groups = torch.arange(40) // 20
    recipe = replace(one_stage(tiny_net("student"), plain_goal(), data), metrics=(BetweenPatients(),))
    assert not check(recipe).problems


def test_a_metric_of_classes_is_a_problem_for_numbers():
    rows, metrics = samples("regression", 8), (MacroF1(), Brier(), CrossEntropy(), MeanIoU())
    stage = Stage({tiny_net("student", outputs=rows.tensors[1].shape[1]): Truth(nn.MSELoss())}, Training(epochs=1))
    problems = check(Recipe(data=TorchData(rows, rows), schedule=[stage], metrics=metrics)).problems
    for metric, problem in zip(metrics, problems, strict=True):
        assert f"metric {metric.name!r} does not fit the validation data (regression)" in problem
        assert "use MSE or R2 for numbers" in problem


def test_metrics_of_numbers_are_tried_on_the_outputs_of_networks_and_the_labels_which_may_be_packed():
    class OfPacked(WithoutThresholds):
        name = "of_packed"

        def compute(self, test):
            if len(set(test.labels[:, 0].tolist())) < 2:  # as metrics of scikit-learn do for a single class
                raise ValueError("all labels are alike")
            return MetricResult(value=float(test.outputs[:, 3].mean()))

    labels = torch.ones(8, 2)
    rows = TensorDataset(samples().tensors[0][:8], labels.index_fill(0, torch.tensor([7]), 0.5))
    objective = Truth(lambda outputs, labels: outputs.square().mean() + labels.mean())
    teacher, student = (tiny_net(name, outputs=4) for name in ("teacher", "student"))
    hint = Match(teacher, Hint(), **hidden_taps(student, teacher))
    stages = [Stage({teacher: objective}, Training(epochs=1)), Stage({student: objective + hint}, Training(epochs=1))]
    data = TorchData(rows, rows, task="regression")
    result = run(Recipe(data=data, schedule=stages, metrics=(OfPacked(),)), device="cpu")
    assert [*result.metrics] == ["teacher", "student"]
    trained = Match(tiny_net("teacher", outputs=4, trained=True), nn.MSELoss())
    stage = Stage({student: objective + trained}, Training(epochs=1))
    assert not check(Recipe(data=data, schedule=[stage], metrics=(OfPacked(),))).without_metrics
    problem = only_problem(Recipe(data=data, schedule=stages[:1], metrics=(OfPacked(), R2())))
    assert "metric 'r2' does not fit the validation data (regression) and net 'teacher'" in problem
    assert "got outputs (4, 4) and labels (4, 2); if labels are packed" in problem


def test_numbers_may_be_packed_in_another_number_of_dimensions_than_outputs():
    class LastError(WithoutThresholds):
        name, lower_is_better = "last_error", True

        def compute(self, test):
            return MetricResult(value=float(np.abs(test.outputs - test.labels[:, -1]).mean()))

    inputs, labels = samples("regression").tensors
    series = TensorDataset(inputs, labels[:, None].expand(-1, 6, -1))
    objective = Truth(lambda outputs, labels: (outputs - labels[:, -1]).abs().mean())
    recipe = one_stage(tiny_net("student"), objective, TorchData(series, series))
    assert not check(replace(recipe, metrics=(LastError(),))).problems


def test_complex_outputs_and_labels_are_a_problem_with_the_remedy():
    signals = torch.randn(8, 4, dtype=torch.complex64)
    with pytest.raises(DataError, match=r"train data are complex64, .* pass torch.view_as_real\(labels\)"):
        TorchData(TensorDataset(signals, signals), TensorDataset(signals, signals))
    pairs = TensorDataset(signals, torch.view_as_real(signals))
    student = Net("student", nn.Linear(4, 4, dtype=torch.complex64))
    objective = Truth(lambda outputs, labels: (torch.view_as_real(outputs) - labels).square().mean())
    problem = only_problem(one_stage(student, objective, TorchData(pairs, pairs)))
    assert "net 'student' has outputs of torch.complex64, but metrics take real numbers" in problem
    student = Net("student", student.module, element=torch.view_as_real)
    assert not check(one_stage(student, Truth(nn.MSELoss()), TorchData(pairs, pairs))).problems


def test_labels_per_pixel_next_to_outputs_per_sample_are_a_problem_with_both_shapes():
    inputs, labels = samples().tensors
    per_pixel = TensorDataset(inputs, labels[:, None, None].expand(-1, 6, 5))
    data = TorchData(per_pixel, per_pixel, task="regression")
    problem = only_problem(one_stage(tiny_net("student"), Truth(nn.L1Loss()), data))
    assert "L1Loss does not accept student (4, 3) and target (4, 6, 5)" in problem


def test_labels_per_token_next_to_outputs_per_sample_are_a_problem_with_both_shapes():
    inputs, labels = samples().tensors
    per_token = TensorDataset(inputs, labels[:, None].repeat(1, 6))
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), TorchData(per_token, per_token)))
    assert "net 'student' has outputs of shape (batch, 3) for labels of shape (batch, 6), one per pixel" in problem


# Networks


def test_a_student_that_fails_for_its_inputs_is_a_problem():
    student = Net("student", nn.Linear(9, 3))
    assert "net 'student' fails for its inputs ((4, 4)): " in only_problem(one_stage(student, plain_goal()))


def test_a_failure_names_the_keywords_of_the_inputs():
    rows = [({"words": torch.zeros(4), "lengths": torch.ones(2)}, row % 3) for row in range(6)]
    net = Net("student", nn.Bilinear(4, 2, 3))
    problem = only_problem(one_stage(net, plain_goal(), TorchData(rows, rows, classes=3)))
    assert "net 'student' fails for its inputs (words (4, 4), lengths (4, 2)): TypeError" in problem


def test_an_id_without_a_row_in_an_embedding_is_explained_in_the_check_and_in_the_run():
    ids = torch.full((8,), 1)
    recipes = []
    for row in (0, 7):  # the check runs the first four samples
        split = TensorDataset(ids.index_fill(0, torch.tensor(row), -1), torch.arange(8) % 3)
        recipes.append(one_stage(Net("student", nn.Embedding(5, 3)), plain_goal(), TorchData(split, split)))
    advice = "the rows of an nn.Embedding are numbered from 0"
    assert f"the integers among the inputs are -1 to 1; {advice}" in only_problem(recipes[0])
    with pytest.raises(IndexError) as caught:
        run(recipes[1], device="cpu")
    assert advice in "".join(caught.value.__notes__)


def test_texts_that_are_not_tokenized_are_a_problem_with_a_remedy():
    rows = [("a text", row % 3) for row in range(6)]
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), TorchData(rows, rows, classes=3)))
    assert "net 'student' fails for its inputs (4 texts): TypeError" in problem
    assert problem.endswith("; tokenize texts in the collate_fn of a DataLoader, or in a view: Net(..., view=...)")


class OfList(nn.Module):
    """A network of a list of images, as detectors have it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, images):
        return self.layer(torch.stack([image.mean((0, 1)) for image in images]))


def test_a_network_of_a_list_gets_it_in_a_tuple_as_the_error_without_one_says():
    stage = Stage({Net("student", OfList()): plain_goal()}, Training(epochs=1))

    def recipe_of(inputs):
        loader = DataLoader(range(4), 4, collate_fn=lambda rows: (inputs, torch.tensor(rows) % 3))
        return Recipe(data=TorchData(loader, loader, classes=3), schedule=[stage])

    images = [torch.zeros(3, 5 + row, 5) for row in range(4)]
    problem = only_problem(recipe_of(images))
    assert "fails for its inputs ((3, 5, 5), (3, 6, 5), (3, 7, 5), (3, 8, 5)): TypeError" in problem
    assert problem.endswith("if it takes the list itself, yield it in a tuple, (inputs,)")
    assert not check(recipe_of((images,))).problems
    problem = only_problem(recipe_of(([*images[1:], torch.zeros(3, 5, 6)],)))
    assert "fails for its inputs (a list of 4 tensors): RuntimeError" in problem


def test_labels_that_a_net_gets_because_the_dataset_is_wrapped_in_unlabelled_are_named():
    data = TorchData(Unlabelled(samples()), samples())
    match = Match(tiny_net("teacher", trained=True), SoftTargets())
    problems = check(one_stage(tiny_net("student"), 1.0 * match, data)).problems
    assert len(problems) == 2  # of the teacher and of the student
    for problem in problems:
        assert problem.endswith(
            "if the second input is the label, leave out kdkit.Unlabelled(...): labels need not be used"
        )


def test_the_dtype_of_inputs_is_named_even_if_one_of_two_inputs_may_be_a_label():
    class Users(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.users = nn.Linear(4, 3), nn.Embedding(3, 3)

        def forward(self, inputs, user):
            return self.layer(inputs) + self.users(user)

    inputs, user = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    data = TorchData(Unlabelled(TensorDataset(inputs, user)), StackDataset(TensorDataset(inputs, user), user))
    match = Match(Net("teacher", Users(), trained=True), SoftTargets())
    problems = check(one_stage(Net("student", Users()), 1.0 * match, data)).problems
    assert ["the inputs are float64" in problem and "Unlabelled" not in problem for problem in problems] == [True, True]


class Graph:
    """An object of tensors with a method `to`, as a batch of torch_geometric."""

    def __init__(self, rows):
        self.x, self.edges, self.y = torch.zeros(len(rows), 4), torch.zeros(2, 3), torch.tensor(rows) % 3

    def to(self, device):
        return self


class OfNodes(nn.Linear):
    def forward(self, x, edges, weights=None):
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "names"), [(OfNodes(4, 3), "('x', 'edges')"), (nn.Linear(4, 3), "(...)")], ids=["nodes", "linear"]
)
def test_a_network_of_attributes_of_an_object_selects_them_as_the_error_says(module, names):
    data = TorchData(*[DataLoader(range(6), 3, collate_fn=Graph)] * 2, labels="y", classes=3)
    problem = only_problem(one_stage(Net("student", module), plain_goal(), data))
    assert "fails for its inputs (a Graph): TypeError" in problem
    assert problem.endswith(f"; select the attributes that it takes: Net(..., view=Inputs(only={names}))")
    student = Net("student", OfNodes(4, 3), view=Inputs(only=("x", "edges")))
    teacher = Net("teacher", torch.sigmoid, version="1")  # a function of C++, whose arguments are unknown
    problem = only_problem(one_stage(student, Match(teacher, SoftTargets()), data))
    assert problem.endswith("select the attributes that it takes: Net(..., view=Inputs(only=(...)))")
    assert not check(one_stage(student, plain_goal(), data)).problems


def test_a_teacher_that_fails_for_its_inputs_is_a_problem():
    teacher = Net("teacher", nn.Linear(9, 3), trained=True)
    problem = only_problem(one_stage(tiny_net("student"), Match(teacher, SoftTargets())))
    assert "net 'teacher' fails for its inputs ((4, 4)): " in problem


def test_a_teacher_of_numbers_that_returns_a_scalar_is_a_problem():
    class Mean(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).mean()

    match = Match(Net("teacher", Mean(4, 3), trained=True), nn.MSELoss())
    problem = only_problem(one_stage(tiny_net("student"), match, tiny_data("regression")))
    assert "student (4, 3) and target () have different shapes" in problem


def test_a_failure_names_the_line_of_user_code():
    class Student(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs)

    problem = only_problem(one_stage(Net("student", Student(9, 3)), plain_goal()))
    line = Student.forward.__code__.co_firstlineno + 1
    assert problem.endswith(f"(test_check.py, line {line})")


def test_a_net_that_fails_in_several_stages_is_one_problem_for_each_net():
    teacher, student = Net("teacher", nn.Linear(9, 3)), tiny_net("student")
    stages = [Stage({teacher: plain_goal()}, TRAINING), Stage({student: Match(teacher, SoftTargets())}, TRAINING)]
    (problem,) = check(Recipe(data=tiny_data(), schedule=stages)).problems
    assert problem.startswith("stage 'teacher': net 'teacher' fails")


class ConvNet(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("shape", "channels", "hint"),
    [
        ((8, 8), 1, "a Conv2d takes (batch, channels, height, width), but these inputs have no channels: add them"),
        ((8, 8, 3), 3, "these inputs have their channels last: move them in the data, .permute(0, 3, 1, 2)"),
        ((2, 8, 8), 3, "a view of your own gives this network other inputs than the data has"),
    ],
)
def test_images_without_channels_or_with_channels_last_are_explained(shape, channels, hint):
    split = TensorDataset(torch.zeros(12, *shape), torch.arange(12) % 3)
    stage = Stage({Net("student", ConvNet(channels)): plain_goal()}, TRAINING)
    (problem,) = check(Recipe(data=TorchData(split, split), schedule=[stage])).problems
    assert "fails for its inputs" in problem
    assert hint in problem


class Shapes(WithoutThresholds):
    """A metric that records the shapes of the predictions that it gets."""

    name = "shapes"

    def __init__(self):
        self.seen = []

    def compute(self, test):
        self.seen.append((test.outputs.shape, test.labels.shape))
        return MetricResult(value=0.0)


class Number(WithoutThresholds):
    """A metric that returns a plain number."""

    name = "number"

    def compute(self, test):
        return 0.5


class Shifting(WithoutThresholds):
    """A metric that changes the outputs that other metrics get too."""

    name = "shifting"

    def compute(self, test):
        outputs = test.outputs
        outputs -= outputs.max(1, keepdims=True)
        return MetricResult(value=outputs.mean())


def test_a_metric_that_changes_outputs_in_place_is_a_problem():
    recipe = replace(one_stage(tiny_net("student"), plain_goal()), metrics=(Shifting(),))
    assert "it changes labels or outputs in place, but other metrics get the same arrays" in only_problem(recipe)


def test_a_metric_that_returns_a_number_is_a_problem():
    recipe = replace(one_stage(tiny_net("student"), plain_goal()), metrics=(Number(),))
    assert "compute must return MetricResult(value=...); it returned a float" in only_problem(recipe)


def test_a_metric_whose_fit_returns_nothing_is_a_problem():
    class Forgotten(Number):
        def fit(self, validation):
            pass

    recipe = replace(one_stage(tiny_net("student"), plain_goal()), metrics=(Forgotten(),))
    assert "fit must return the metric with its thresholds, or self; it returned None" in only_problem(recipe)


def test_the_line_of_a_metric_that_raises_is_named():
    class Failing(Number):
        def compute(self, test):
            return test.labels.cuda()

    recipe = replace(one_stage(tiny_net("student"), plain_goal()), metrics=(Failing(),))
    assert re.search(r"has no attribute 'cuda' \(test_check\.py, line \d+\)", only_problem(recipe))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_metrics_are_tried_on_a_few_samples_of_many_classes(task):
    labels = torch.arange(4) if task == "multiclass" else torch.eye(4, 5000)
    split, metric = TensorDataset(torch.zeros(4, 2), labels), Shapes()
    loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
    stage = Stage({Net("student", nn.Linear(2, 5000)): Truth(loss)}, TRAINING)
    recipe = Recipe(data=TorchData(split, split, classes=5000, task=task), schedule=[stage], metrics=(metric,))
    assert not check(recipe).problems
    assert {outputs for outputs, _ in metric.seen} == {(800, 5000)}


def test_a_net_without_trainable_parameters_is_a_problem():
    student = tiny_net("student")
    student.module.requires_grad_(False)
    # One problem: that its optimizer cannot be created is not reported as well.
    assert "has nothing to train" in only_problem(one_stage(student, plain_goal()))


def test_a_lazy_student_is_named():
    student = Net("student", nn.LazyLinear(3))
    assert "call its module once on a batch" in only_problem(one_stage(student, plain_goal()))
    assert student.parameters == 0  # the plan shows it


def test_weights_that_were_created_in_inference_mode_are_a_problem():
    with torch.inference_mode():
        student = tiny_net("student")
    assert "weights that were created in torch.inference_mode" in only_problem(one_stage(student, plain_goal()))


def test_a_plain_callable_cannot_be_trained():
    api = Net("api", lambda inputs: inputs[:, :3], version="1")
    assert "it can teach, but not be trained" in only_problem(one_stage(api, plain_goal()))


def test_a_plain_callable_can_teach_but_not_be_tapped():
    # A plain callable stands for a model behind an interface, such as a web service.
    api, student = Net("api", lambda inputs: inputs[:, :3], version="1"), tiny_net("student")
    check(one_stage(student, Match(api, SoftTargets()))).require()
    tapped = Match(api, nn.MSELoss(), student=Tap(student.module.hidden), target=Tap(student.module.hidden))
    assert "net 'api' is a plain callable, which cannot be tapped" in only_problem(one_stage(student, tapped))


def test_an_object_with_a_name_but_without_open_is_a_problem_as_a_teacher():
    class Named:
        name = "named"

    problem = only_problem(one_stage(tiny_net("student"), Match(Named(), SoftTargets())))
    assert "'named' is a Named, which cannot be matched" in problem


class TeacherHeadLoss(nn.Module):
    """A loss with a submodule of the teacher, whose parameters would be trained with the loss."""

    def build(self, student, target, context, teacher):
        self.head = teacher.head

    def forward(self, student, target):
        return F.mse_loss(student, target)


def test_a_loss_that_would_train_a_part_of_the_teacher_is_a_problem():
    teacher, student = teacher_and_student()
    assert "net 'teacher' teaches, but a student or a loss would train parameters" in only_problem(
        one_stage(student, Match(teacher, TeacherHeadLoss()))
    )


def test_a_teacher_that_shares_its_module_with_the_student_is_a_problem():
    student = tiny_net("student")
    teacher = Net("teacher", student.module, trained=True)
    problem = only_problem(one_stage(student, plain_goal() + Match(teacher, SoftTargets())))
    assert "a student or a loss would train parameters that it shares with it" in problem


class Adapted(nn.Module):
    """A frozen layer, and an adapter that can be switched off."""

    def __init__(self, base, adapter, is_on):
        super().__init__()
        self.base, self.adapter, self.is_on = base.requires_grad_(False), adapter, is_on

    @torch.no_grad()
    def without_gradients(self, inputs):
        return self.base(inputs) + self.adapter(inputs)

    def forward(self, inputs):
        if self.is_on is None:
            return self.without_gradients(inputs)
        return self.base(inputs) + self.adapter(inputs) if self.is_on else self.base(inputs)


def test_a_student_with_its_adapter_switched_off_is_a_teacher():
    base, adapter = nn.Linear(4, 3), nn.Linear(4, 3)
    student = Net("student", Adapted(base, adapter, is_on=True))
    for is_on, problems in ((False, 0), (True, 1), (None, 1)):
        teacher = Net("teacher", Adapted(base, adapter, is_on=is_on), trained=True)
        values = adapter.weight.clone()
        plan = check(one_stage(student, Match(teacher, SoftTargets())))
        assert len(plan.problems) == problems
        assert not any("changes net 'teacher'" in notice for notice in plan.notices)
        assert torch.equal(adapter.weight, values)


@pytest.mark.parametrize("draws", [None, 1])
@pytest.mark.parametrize(("split", "row"), [("train", 7), ("validation", 7), ("test", 0), ("test", 7)])
def test_samples_that_cannot_be_stacked_are_found_before_the_run(split, row, draws):
    unequal = [(torch.randn(4 + (index == row)), index % 3) for index in range(8)]
    splits = {"train": samples(), "validation": samples(seed=1), "test": samples(seed=2), split: unequal}
    data = TorchData(**splits, classes=3, draws=draws)
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), data))
    assert f"samples of the {split} data have different shapes, such as " in problem


def test_samples_of_each_batch_may_have_their_own_size():
    test = [(torch.randn(4 + row // 4), row % 3) for row in range(12)]
    student = Net("student", nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 3)))
    data = TorchData(samples(), samples(seed=1), test, classes=3)
    assert not check(one_stage(student, plain_goal(), data)).problems


def test_a_batch_size_of_one_is_checked_with_one_sample():
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), batch_size=1))
    assert "net 'student' fails for its inputs ((1, 4)): " in problem
    assert "more than 1 value per channel" in problem  # from the batch norm in training mode


def test_a_state_dict_with_more_than_tensors_is_a_problem():
    class Versioned(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

    problem = only_problem(one_stage(Net("student", Versioned(4, 3)), plain_goal()))
    assert "net 'student' has '_extra_state', a dict, in its state_dict()" in problem


def inference_mode_ones():
    with torch.inference_mode():
        return torch.ones(4)


@pytest.mark.parametrize(
    ("scale", "kind"),
    [(torch.ones(1).expand(4), "an expanded tensor"), (inference_mode_ones(), "a tensor of inference mode")],
    ids=["expanded", "inference mode"],
)
def test_a_student_with_a_buffer_that_cannot_be_changed_is_a_problem_but_a_teacher_is_evaluated(scale, kind):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("scale", scale)

        def forward(self, inputs):
            return super().forward(inputs * self.scale)

    problem = only_problem(one_stage(Net("student", Scaled()), plain_goal()))
    assert f"net 'student' has 'scale', {kind}, into which torch cannot load the weights of a run" in problem
    teacher = Net("teacher", Scaled(), trained=True)
    result = run(one_stage(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets())), measure=False)
    assert "teacher" in result.metrics


def test_weights_of_a_dtype_that_files_cannot_hold_are_a_problem():
    student = tiny_net("student")
    student.module.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex128))
    problem = only_problem(one_stage(student, plain_goal()))
    assert "net 'student' has 'spectrum' of torch.complex128, which the files of a run" in problem
    assert "use complex64, or float64" in problem


# The check as a whole


def test_several_problems_are_reported_together():
    teacher = tiny_net("teacher")
    # Two problems of the recipe and one of each stage.
    first = Stage({tiny_net("one", outputs=5): plain_goal()}, Training(epochs=1, monitor="nothing"))
    second = Stage({tiny_net("two"): Match(teacher, SoftTargets()) + Truth(detached)}, TRAINING)
    plan = check(Recipe(data=tiny_data(), schedule=[first, second]))
    with pytest.raises(CheckError, match="4 problems found") as caught:
        plan.require()
    text = str(caught.value)
    for message in (
        "'nothing' is not among",
        "has outputs of shape (batch, 5)",
        "net 'teacher' teaches",
        "detached has no effect",
    ):
        assert message in text


@pytest.mark.parametrize("name", ["half", "double", "type", "train", "keys", "forward"])
def test_a_net_or_a_term_may_have_the_name_of_a_module_method(name):
    teacher, student = tiny_net("t", trained=True, hidden=7), tiny_net(name)
    # nn.Module refuses a submodule with the name of a method, so these names cannot be keys of a ModuleDict.
    match = Match(teacher, Hint(), **hidden_taps(student, teacher), label=name)
    check(one_stage(student, plain_goal() + match)).require()


class StatefulMlp(Mlp):
    """A network with dropout, which draws random numbers, and with a buffer that every forward pass replaces."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, inputs):
        self.runs = self.runs + 1
        return super().forward(self.drop(inputs))


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_check_changes_no_net_and_no_random_state(valid, training):
    teacher, student = Net("teacher", Mlp(hidden=7), trained=True), Net("student", StatefulMlp())
    for net in (teacher, student):
        net.module.train(training)
        net.module.norm.train(not training)  # a mode that differs from that of its parent
    taps = {"student": Tap(student.module.act, "input"), "target": Tap(teacher.module.act, "input")}
    invalid_term = Truth(detached, label="detached")
    objective = plain_goal() + Match(teacher, Hint(), **taps) + (0 if valid else invalid_term)
    states = [state_of(teacher.module), state_of(student.module)]
    random_state = torch.get_rng_state()
    assert bool(check(one_stage(student, objective)).problems) is not valid
    assert same_state(states[0], state_of(teacher.module))
    assert same_state(states[1], state_of(student.module))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_second_check_has_the_same_summaries():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    recipe = one_stage(student, plain_goal() + Match(teacher, Hint(), **hidden_taps(student, teacher)))
    assert check(recipe).terms == check(recipe).terms


def test_data_of_a_single_sample_can_be_checked():
    # The tiny batch is then a single sample, so the network has no batch norm.
    data = TorchData(samples(rows=1), samples(rows=3), classes=["a", "b", "c"])
    student = Net("student", nn.Linear(4, 3))
    check(one_stage(student, plain_goal(), data)).require()


def without_positives(labels, **training):
    inputs, labels_of_all = samples("multilabel").tensors
    data = TorchData(
        TensorDataset(inputs, labels_of_all), TensorDataset(inputs, labels), TensorDataset(inputs, labels_of_all)
    )
    return one_stage(tiny_net("student"), Truth(nn.BCEWithLogitsLoss()), data, **training)


def test_a_monitored_metric_that_the_validation_labels_leave_undefined_is_a_problem():
    problem = only_problem(without_positives(torch.zeros(8, 3)))
    assert "'macro_auprc' is undefined on the validation split (no positives: 0, 1, 2), so it cannot choose" in problem
    assert "Training(monitor=...), or keep the last epoch, Training(keep='last')" in problem


@pytest.mark.parametrize("training", [{"keep": "last"}, {"monitor": "micro_f1"}])
def test_a_metric_that_does_not_choose_the_epoch_may_be_undefined(training):
    assert check(without_positives(torch.zeros(8, 3), **training)).problems == ()


def test_a_metric_may_be_undefined_for_some_classes():
    labels = torch.zeros(8, 3)
    labels[0, 0] = 1
    assert check(without_positives(labels)).problems == ()


@pytest.mark.parametrize(
    ("first", "outputs", "advice"),
    [
        (1, 3, "; if labels are numbered from 1 to 3, subtract 1: classes are numbered from 0"),
        (0, 9, "; if the last classes have no samples, pass the number of all: TorchData(..., classes=9); if only"),
        (0, 1, ""),
    ],
)
def test_a_wrong_number_of_outputs_names_the_cause_in_classes_without_names(first, outputs, advice):
    inputs, labels = samples().tensors
    data = TorchData(TensorDataset(inputs, labels + first), TensorDataset(inputs.clone(), labels + first))
    problem, *_ = check(one_stage(tiny_net("student", outputs=outputs), plain_goal(), data)).problems
    assert f"or name their classes with Net(..., classes=...){advice}" in problem
    assert problem.endswith("classes=...)") is (not advice)


def test_a_loss_on_class_indices_names_the_remedy_for_one_hot_labels():
    student = tiny_net("student")
    problem = only_problem(one_stage(student, Match(tiny_net("teacher", trained=True), DKD()), tiny_data("multilabel")))
    assert problem.endswith(
        "one of the PerLabel... losses; if each sample has one class, in a row of 0 and 1, pass TorchData(..., "
        "task='multiclass')"
    )


def test_a_check_takes_a_function_that_returns_a_recipe_as_a_run_does():
    assert check(lambda: one_stage(tiny_net("student"), plain_goal())).problems == ()
    with pytest.raises(
        RecipeError, match=r"check takes a kdkit.Recipe, or a function .*; got a str; to check a recipe file"
    ):
        check("recipe.py")


def test_a_batch_transform_gets_batches_on_the_device_of_the_student(monkeypatch):
    student, moved = tiny_net("student"), []
    move_to = Net.move_to
    monkeypatch.setattr(Net, "move_to", lambda net, device: (moved.append(net.name), move_to(net, device))[1])

    def written_by_student(inputs, labels):
        assert moved  # its weights are on the device by now, so it may compute the batch
        with torch.no_grad():
            student.module(inputs)
        return inputs, labels

    split = samples(rows=8)
    data = TorchData(split, split, classes=("a", "b", "c"), batch_transform=written_by_student)
    assert check(Recipe(data=data, schedule=[Stage({student: plain_goal()}, TRAINING)])).problems == ()
