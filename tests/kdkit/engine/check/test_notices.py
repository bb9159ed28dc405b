"""A check gives notices about settings that are valid but rarely intended."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from kdkit import (
    AverageWeights,
    Batch,
    Data,
    Inputs,
    LinearRamp,
    Match,
    MetricResult,
    Net,
    Optimizer,
    Recipe,
    Split,
    Stage,
    Tap,
    TeacherOutput,
    Teachers,
    TeacherSession,
    TorchData,
    Training,
    Truth,
    check,
    run,
)
from kdkit.data.sample_names import name_digests
from kdkit.errors import RunFolderError
from kdkit.losses import (
    DIST,
    RKD,
    Cosine,
    Hint,
    IgnoreUnknown,
    LogitMSE,
    PerLabelSoftTargets,
    PerTeacher,
    SoftTargets,
    loss_name,
)
from kdkit.metrics import MAE, BootstrapInterval
from tests.helpers.callbacks import Recorder
from tests.helpers.open_stages import hidden_taps
from tests.helpers.tiny import one_stage, plain_goal, samples, tiny_data, tiny_net

LAST = (
    "stage 'student' keeps its last epoch instead of the best one: its terms do not train the outputs of 'student', so "
    "their metrics mean nothing; to choose by the metric anyway, pass Training(keep='best')"
)


def nets():
    """Return a trained teacher and a student."""
    return tiny_net("teacher", trained=True), tiny_net("student", seed=1)


def hint(teacher, student, layer="hidden"):
    return Match(
        teacher,
        Hint(),
        student=Tap(student.module.get_submodule(layer)),
        target=Tap(teacher.module.get_submodule(layer)),
    )


@pytest.mark.parametrize(
    ("tapped", "averaged", "loss", "count"),
    [(2, False, Hint(), 1), (2, False, Cosine(), 1), (0, False, Hint(), 0), (2, True, Hint(), 0), (2, False, RKD(), 0)],
)
def test_a_single_position_that_is_compared_with_each_of_the_target_is_a_notice(tapped, averaged, loss, count):
    def network():
        layers = (nn.Conv2d(1, 2, 2, 2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 2, 2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2, 3))

    teacher, student = Net("teacher", network(), trained=True), Net("student", network())
    element = (lambda maps: maps.flatten(2).mean(2)) if averaged else None
    taps = {"student": Tap(student.module[tapped]), "target": Tap(teacher.module[1], element=element)}
    rows = TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    plan = check(one_stage(student, plain_goal() + Match(teacher, loss, **taps), TorchData(rows, rows)))
    assert not plan.problems
    notices = [notice for notice in plan.notices if "the only position of the student with each of the 4 of" in notice]
    assert len(notices) == count


@pytest.mark.parametrize(
    ("sides", "layer", "is_notice"),
    [
        ("student", "norm", True),
        ("student target", "norm", False),
        ("", "norm", False),
        ("student", "head", False),  # has the shape of the outputs, as a second head has
    ],
)
def test_features_that_are_compared_with_outputs_are_a_notice(sides, layer, is_notice):
    teacher, student = nets()
    modules = {"student": student.module, "target": teacher.module}
    taps = {side: Tap(modules[side].get_submodule(layer)) for side in sides.split()}
    plan = check(one_stage(student, plain_goal() + Match(teacher, Hint(), **taps)))
    assert not plan.problems
    notices = [notice for notice in plan.notices if "to compare features of both, pass target=Tap(...)" in notice]
    assert len(notices) == is_notice


@pytest.mark.parametrize("weight", [0.0, LinearRamp(start=0, end=0)])
def test_a_stage_that_trains_no_outputs_keeps_its_last_epoch(weight):
    teacher, student = nets()
    plan = check(one_stage(student, hint(teacher, student) + weight * plain_goal(), patience=1))
    plan.require()
    assert plan.notices[0] == LAST
    assert (plan.stages[0].training.keep, plan.stages[0].training.patience) == ("last", None)


@pytest.mark.parametrize(
    "terms",
    [
        lambda teacher, student: hint(teacher, student) + LinearRamp() * plain_goal(),
        lambda teacher, student: hint(teacher, student, layer="head"),  # whose features are the outputs
        lambda _teacher, student: Truth(nn.CrossEntropyLoss(), student=Tap(student.module.head)),
    ],
)
def test_a_stage_that_trains_the_outputs_keeps_its_best_epoch(terms):
    teacher, student = nets()
    plan = check(one_stage(student, terms(teacher, student), patience=1))
    plan.require()
    assert plan.notices == ()
    assert (plan.stages[0].training.keep, plan.stages[0].training.patience) == ("best", 1)


def test_a_frozen_head_needs_no_training():
    teacher, student = nets()
    student.module.head.requires_grad_(False)
    plan = check(one_stage(student, hint(teacher, student, layer="act")))
    assert (plan.notices, plan.stages[0].training.keep) == ((), "best")


def test_one_of_several_students_that_trains_its_outputs_chooses_the_epoch():
    teacher, student = nets()
    other = tiny_net("other", seed=2)
    stage = Stage({student: hint(teacher, student), other: plain_goal()}, Training(epochs=1, batch_size=4))
    assert check(Recipe(data=tiny_data(), schedule=[stage])).stages[0].training.keep == "best"


def test_keep_that_the_user_passes_stays():
    teacher, student = nets()
    plan = check(one_stage(student, hint(teacher, student), keep="best"))
    assert (plan.notices, plan.stages[0].training.keep) == ((), "best")


def test_a_run_on_features_keeps_its_last_epoch_and_resumes_only_with_the_same_keep(tmp_path):
    def recipe(**training):
        teacher, student = nets()
        return one_stage(student, hint(teacher, student), epochs=3, **training)

    run(recipe(), out=tmp_path / "run")
    (stage_file,) = (tmp_path / "run").glob("*/stage.json")
    assert json.loads(stage_file.read_text())["best_epoch"] == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert LAST in record["notices"]
    assert "keep='last'" in record["trainings"][0]
    run(recipe(keep="last"), out=tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="differs in its trainings"):
        run(recipe(keep="best"), out=tmp_path / "run", resume=True)


def test_a_run_by_outputs_is_recorded_as_before_keep_could_be_left_out(tmp_path):
    teacher, student = nets()
    run(one_stage(student, Match(teacher, SoftTargets())), out=tmp_path / "run")
    assert "keep='best'" in json.loads((tmp_path / "run" / "run.json").read_text())["trainings"][0]


def ending_in(layer, name="student", **options):
    """Return a net whose outputs pass a layer."""
    torch.manual_seed(1)
    return Net(name, nn.Sequential(nn.Linear(4, 3), layer), **options)


def notices_of(student, *terms, task="multiclass", truth=None):
    truth = Truth(nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()) if truth is None else truth
    plan = check(one_stage(student, sum(terms, truth), tiny_data(task)))
    plan.require()
    return plan.notices


UNTRAINED = "the probability of a label of net 'student' is not trained: {} compares classes with each other"


def of_two_samples(student, target):
    """A softmax of a user, which kdkit does not know."""
    return -(target.softmax(1) * student.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("loss", [SoftTargets(), DIST(), of_two_samples, PerTeacher(SoftTargets())])
def test_labels_that_are_learned_by_a_softmax_alone_are_a_notice(loss):
    teacher, student = nets()
    several = Teachers(teacher, tiny_net("second", trained=True))
    match = Match(several if isinstance(loss, PerTeacher) else teacher, loss)
    (notice,) = notices_of(student, truth=match, task="multilabel")
    assert notice.startswith(UNTRAINED.format(loss_name(loss)))


@pytest.mark.parametrize(
    ("other", "task"),
    [
        (Truth(nn.BCEWithLogitsLoss()), "multilabel"),  # as in the LRH-Net paper
        (0.5 * Truth(nn.MultiLabelSoftMarginLoss()), "multilabel"),
        (Truth(nn.CrossEntropyLoss()), "multiclass"),
    ],
)
def test_a_softmax_next_to_a_term_that_sees_each_label_is_no_notice(other, task):
    teacher, student = nets()
    assert notices_of(student, Match(teacher, SoftTargets()), truth=other, task=task) == ()


@pytest.mark.parametrize("loss", [PerLabelSoftTargets(), LogitMSE(), Cosine(), RKD()])
def test_losses_that_see_each_label_are_no_notice(loss):
    teacher, student = nets()
    assert notices_of(student, truth=Match(teacher, loss), task="multilabel") == ()


@pytest.mark.parametrize(
    ("name", "attributes", "count"),
    [
        ("smape", {}, 1),
        ("pinball_loss", {"lower_is_better": True}, 0),
        ("wer", {}, 1),
        ("word_error_rate", {}, 1),
        ("wer", {"lower_is_better": True}, 0),
        ("word_error_rate", {"lower_is_better": False}, 0),
        ("power", {}, 0),
    ],
)
def test_a_metric_with_the_name_of_an_error_that_does_not_say_if_lower_is_better_is_noticed(name, attributes, count):
    class Rate:
        def fit(self, validation):
            return self

        def compute(self, test):
            return MetricResult(value=0.5)

    metric = Rate()
    vars(metric).update(name=name, **attributes)
    recipe = one_stage(tiny_net("student"), plain_goal())
    plan = check(replace(recipe, metrics=(BootstrapInterval(metric),)))
    assert sum("set its attribute lower_is_better = True" in notice for notice in plan.notices) == count


@pytest.mark.parametrize(
    ("names", "classes", "count"),
    [
        (["C", "A", "B"], None, 1),
        (["C", "A", "B"], ["c", "a", "b"], 0),
        (["A", "B", "C"], None, 0),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None, 0),
    ],
)
def test_a_model_of_transformers_whose_config_has_another_order_of_classes_is_a_notice(names, classes, count):
    teacher = tiny_net("teacher", trained=True, classes=classes)
    teacher.module.config = SimpleNamespace(id2label=dict(enumerate(names)))
    notices = notices_of(tiny_net("student"), Match(teacher, SoftTargets()))  # the data has the classes a, b, c
    assert len(notices) == count
    assert all("net 'teacher' has the classes C, A, B, but the data has another order, a, b, c" in x for x in notices)


class Softmaxed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).softmax(-1)


SOFTMAX = (
    "the outputs of net {!r} look like probabilities, such as those of a softmax, but {} takes logits and would "
    "compute probabilities of probabilities; leave the softmax out of the network"
)


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), Softmaxed(4, 3)])
def test_a_softmax_in_a_student_is_a_notice_also_of_the_run(module, tmp_path):
    recipe = one_stage(Net("student", module), plain_goal())
    run(recipe, out=tmp_path / "run")
    notices = json.loads((tmp_path / "run" / "run.json").read_text())["notices"]
    assert SOFTMAX.format("student", "CrossEntropyLoss") in notices


def test_a_softmax_in_a_teacher_is_a_notice():
    teacher = ending_in(nn.Softmax(1), "teacher", trained=True)
    assert notices_of(tiny_net("student"), Match(teacher, SoftTargets())) == (SOFTMAX.format("teacher", "SoftTargets"),)


def test_a_sigmoid_is_a_notice_for_students_and_teachers():
    student, teacher = ending_in(nn.Sigmoid()), ending_in(nn.Sigmoid(), "teacher", trained=True)
    student.module.append(nn.Unflatten(1, (3,)))  # a view of the probabilities
    notices = notices_of(student, Match(teacher, PerLabelSoftTargets()), task="multilabel")
    assert [notice.split(" look ")[0] for notice in notices] == [
        "the outputs of net 'student'",
        "the outputs of net 'teacher'",
    ]


class Stored(TeacherSession):
    """A teacher with stored outputs."""

    name = "trees"

    def __init__(self, outputs):
        self.outputs = outputs

    def open(self, _taps, _context):
        return self

    def __call__(self, batch):
        return TeacherOutput(self.outputs[batch.ids])


@pytest.mark.parametrize("is_stored", [False, True])
def test_probabilities_of_trees_are_a_notice_even_if_one_class_is_rare(is_stored):
    labels = torch.arange(8) % 2
    binary = TensorDataset(torch.randn(8, 4), labels[:, None].float())
    for probabilities, data, loss, remedy in (
        (torch.rand(8, 3).softmax(1), tiny_data(), SoftTargets(), "return probabilities.clamp(min=1e-6).log()"),
        (labels[:, None] * 0.02, TorchData(binary, binary), PerLabelSoftTargets(), "probabilities.logit(eps=1e-6)"),
    ):
        columns = probabilities.shape[1]
        function = Net("trees", lambda inputs, outputs=probabilities: outputs[: len(inputs)], version="1")
        objective = 1.0 * Match(Stored(probabilities.repeat(8, 1)) if is_stored else function, loss)
        (notice,) = check(one_stage(Net("student", nn.Linear(4, columns)), objective, data)).notices
        assert notice.startswith("the outputs of net 'trees' look like probabilities")
        assert remedy in notice


@pytest.mark.parametrize(
    ("layer", "truth", "task"),
    [
        (nn.LogSoftmax(1), nn.CrossEntropyLoss(), "multiclass"),  # whose softmax is the same as that of logits
        (nn.LogSoftmax(1), nn.NLLLoss(), "multiclass"),
        (nn.Sigmoid(), nn.BCELoss(), "multilabel"),
        (nn.Hardtanh(0.3, 0.6), nn.BCEWithLogitsLoss(), "multilabel"),  # in [0, 1] as if by chance
        (nn.Softmax(1), nn.MSELoss(), "regression"),
    ],
)
def test_outputs_that_fit_their_loss_are_no_notice(layer, truth, task):
    assert notices_of(ending_in(layer), task=task, truth=Truth(truth)) == ()


def test_outputs_that_take_much_memory_in_evaluations_are_noticed(monkeypatch):
    monkeypatch.setattr("kdkit.engine.check.notices._LARGE_OUTPUTS", 3 * 4 * 50)
    data = TorchData(samples(), samples("multiclass", 51), samples("multiclass", 50), classes=["a", "b", "c"])
    (notice,) = check(one_stage(tiny_net("student"), plain_goal(), data)).notices
    assert notice.startswith("the outputs of a net for the 51 samples and 3 classes of the validation data take 612 B,")


def test_features_that_a_teacher_returns_are_not_taken_for_probabilities():
    teacher = Net("teacher", nn.Sequential(nn.Linear(4, 5), nn.Sigmoid()), trained=True)
    student = tiny_net("student")
    (notice,) = notices_of(student, Match(teacher, Hint(), student=Tap(student.module)))
    assert "has no metrics" in notice


def test_a_teacher_with_almost_the_same_outputs_for_all_samples_is_no_notice():
    teacher = ending_in(nn.Identity(), "teacher", trained=True)
    with torch.no_grad():
        teacher.module[0].weight.mul_(1e-3)
        teacher.module[0].bias.copy_(torch.tensor([0.1, 0.5, 0.9]))
    assert notices_of(tiny_net("student"), Match(teacher, PerLabelSoftTargets()), task="multilabel") == ()


class Forecast(nn.Module):
    """The next numbers of some channels, (batch, horizon, channels), in which a layer has as many channels."""

    def __init__(self, horizon):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, horizon * 4)

    def forward(self, inputs):
        return self.head(self.body(inputs)).unflatten(1, (-1, 4))


@pytest.mark.parametrize("horizon", [4, 6])
def test_labels_that_are_compared_with_moved_dimensions_are_noticed_or_refused(horizon):
    samples = TensorDataset(torch.randn(8, 4), torch.randn(8, horizon, 4))
    module = Forecast(horizon)
    for channels_last in (None, False):
        tap = Tap(module, channels_last=channels_last)
        recipe = one_stage(Net("student", module), Truth(nn.MSELoss(), student=tap), TorchData(samples, samples))
        plan = check(replace(recipe, metrics=(MAE(),)))
        messages = plan.notices if horizon == 4 else plan.problems
        assert sum("pass Tap(..., channels_last=False)" in text for text in messages) == (channels_last is None)
        assert bool(plan.problems) == (horizon == 6 and channels_last is None)


def test_dimensions_that_were_moved_to_those_of_the_labels_are_no_notice():
    forecast = Forecast(6)
    samples = TensorDataset(torch.randn(8, 4), torch.randn(8, 4, 6))
    student = Net("student", nn.Sequential(forecast, nn.Flatten(1), nn.Unflatten(1, (4, 6))))
    recipe = one_stage(student, Truth(nn.MSELoss(), student=Tap(forecast)), TorchData(samples, samples))
    plan = check(replace(recipe, metrics=(MAE(),)))
    assert (plan.problems, plan.notices) == ((), ())


def test_probabilities_that_no_loss_on_logits_gets_are_no_notice():
    truth = Truth(IgnoreUnknown(nn.BCELoss()))
    plan = check(one_stage(ending_in(nn.Sigmoid()), truth, tiny_data("multilabel", unknown=-1)))
    assert (plan.problems, plan.notices) == ((), ())


def test_a_learning_rate_of_zero_is_noticed():
    recipe = one_stage(tiny_net("student"), plain_goal(), optimizer=Optimizer(torch.optim.SGD, lr=0.0))
    assert check(recipe).notices == ("stage 'student' has a learning rate of 0, so nothing is trained",)


def test_an_empty_parameter_group_is_noticed():
    def groups(named):
        named = list(named)
        head = [parameter for name, parameter in named if name.startswith("head.")]  # without the name of the net
        return [{"params": head, "lr": 1.0}, {"params": [parameter for _, parameter in named]}]

    recipe = one_stage(tiny_net("student"), plain_goal(), optimizer=Optimizer(torch.optim.SGD, lr=0.1, groups=groups))
    (notice,) = check(recipe).notices
    assert "parameter group 1 of 2 of its optimizer is empty; the names" in notice
    assert "such as 'student.hidden.weight'" in notice


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, "1/256"), (torch.float16, "1/2048")])
def test_trained_weights_in_half_precision_are_noticed(dtype, share):
    module = nn.Sequential(nn.Linear(4, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype))
    student = Net("student", module, view=Inputs(dtype=dtype))
    (notice,) = notices_of(student)
    assert f"which round off a change of less than {share} of a weight" in notice
    module.requires_grad_(False).append(nn.Linear(3, 3))  # a frozen network with a trained layer in float32
    module[1].register_forward_hook(lambda _module, _args, output: output.float())
    assert notices_of(student) == ()


@pytest.mark.parametrize(("epochs", "share"), [(5, "98%"), (500, None)])
def test_an_average_of_weights_that_hardly_moves_is_noticed(epochs, share):
    recipe = one_stage(tiny_net("student"), plain_goal(), epochs=epochs, ema=AverageWeights(decay=0.998))
    notices = check(recipe).notices
    assert len(notices) == bool(share)
    expected = (
        f"stage 'student' has 10 updates: with a decay of 0.998, {share} of the average of its weights still comes"
    )
    assert not share or notices[0].startswith(expected)


@pytest.mark.parametrize("amount", [0.5, 1.0])  # all weights of a layer may be 0 at first, as those of an adapter
@pytest.mark.parametrize("is_masked", [True, False])
def test_pruned_weights_that_no_mask_keeps_are_noticed(amount, is_masked):
    student = tiny_net("student")
    prune.l1_unstructured(student.module.hidden, "weight", amount=amount)
    if not is_masked:
        prune.remove(student.module.hidden, "weight")
    notices = check(one_stage(student, plain_goal())).notices
    expected = "29% of the weights of the layers of net 'student' are 0, such as in 'hidden': if they are pruned"
    assert [expected in notice for notice in notices] == [True] * (amount < 1 and not is_masked)


def test_weights_that_are_all_zero_are_noticed():
    teacher, student = nets()
    recipe = one_stage(student, 0 * plain_goal() + LinearRamp(end=0) * Match(teacher, SoftTargets()))
    assert check(recipe).notices == (
        "stage 'student': every term of net 'student' has the weight 0, so nothing trains it",
    )


def test_a_teacher_that_is_worse_than_its_student_is_noted_at_the_end(tmp_path, capsys):
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)
    data = TorchData(*(samples(rows=60, seed=seed) for seed in range(3)))
    with torch.no_grad():  # a student that is right, and a teacher that is wrong
        student.module.head.bias.copy_(torch.tensor([9.0, 0, 0]))
        teacher.module.head.bias.copy_(torch.tensor([0.0, 9, 0]))
    for split in (data.validation, data.test):
        split.dataset.tensors[1][:] = (torch.arange(60) // 5 - 9).clamp(min=0)
    recipe = one_stage(
        student, plain_goal() + Match(teacher, SoftTargets()), data, optimizer=Optimizer(torch.optim.SGD, lr=1e-9)
    )
    result = run(recipe, out=tmp_path / "run", progress=True)
    note = (
        "accuracy of teacher 'teacher' on test, 0.0833, is worse than that of its student 'student', 0.833: a better "
        "teacher may help more"
    )
    assert result.metrics["teacher"]["accuracy"].note == note
    assert note in json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["teacher"]["accuracy"]["note"]
    assert f"note: {note}" in capsys.readouterr().out
    assert not result.metrics["student"]["accuracy"].note


def test_a_teacher_that_is_worse_than_the_student_alone_is_noted_too():
    inputs = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(inputs, inputs[:, :3].argmax(1))
    teacher, student = Net("teacher", nn.Linear(4, 3), trained=True), Net("student", nn.Linear(4, 3))
    with torch.no_grad():
        teacher.module.bias.copy_(torch.tensor([40.0, 0, 0]))  # the same class for all samples
        student.module.weight.zero_()
    training = {"epochs": 9, "batch_size": 30, "optimizer": Optimizer(torch.optim.Adam, lr=0.9), "keep": "last"}
    recipe = one_stage(student, 0 * plain_goal() + Match(teacher, SoftTargets()), TorchData(rows, rows), **training)
    metrics = run(recipe, device="cpu", measure=False, baseline=True).metrics
    assert metrics["student"]["accuracy"].value < metrics["student-alone"]["accuracy"].value
    assert "is worse than that of 'student-alone', " in metrics["teacher"]["accuracy"].note


def test_metrics_that_leave_out_classes_have_a_note_and_are_not_compared():
    old, student = Net("old", nn.Linear(4, 2), trained=True, classes=["a", "b"]), Net("student", nn.Linear(4, 3))
    with torch.no_grad():  # the old network is right on half of its samples, the student on those of the new class
        old.module.bias.copy_(torch.tensor([0.0, 99]))
        student.module.bias.copy_(torch.tensor([0.0, 0, 99]))
    rows = TensorDataset(torch.zeros(60, 4), (torch.arange(60) // 10).clamp(max=2))
    data = TorchData(rows, rows, classes=["a", "b", "c"])
    objective = plain_goal() + Match(old, SoftTargets())
    recipe = one_stage(student, objective, data, optimizer=Optimizer(torch.optim.SGD, lr=1e-9))
    metrics = run(recipe, device="cpu", measure=False).metrics
    assert metrics["old"]["accuracy"].value < metrics["student"]["accuracy"].value
    assert metrics["old"]["accuracy"].note == (
        "net 'old' has 2 of the 3 classes, and its metrics leave out samples of the others: they cannot be compared "
        "with those of networks that have all classes"
    )
    assert not metrics["student"]["accuracy"].note


def test_a_batch_norm_in_eval_mode_that_is_not_frozen_is_noticed():
    student = Net("student", nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    assert not check(one_stage(student, plain_goal())).notices
    student.module[1].eval()
    (notice,) = check(one_stage(student, plain_goal())).notices
    assert "batch norms of net 'student', such as '1', are in eval mode, but will be in training mode" in notice
    student.module[1].requires_grad_(False)
    assert not check(one_stage(student, plain_goal())).notices
    student.module.requires_grad_(True).eval()  # as from_pretrained returns it
    assert not check(one_stage(student, plain_goal())).notices


class WithProjector:
    """A loss that is no nn.Module, so the optimizer does not get its projector."""

    def __init__(self, trained=True):
        self.projector = nn.Linear(5, 5).requires_grad_(trained)

    def __call__(self, student, target):
        return (self.projector(student) - target).square().mean()


class ModuleWithProjector(WithProjector, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        WithProjector.__init__(self)

    forward = WithProjector.__call__
    __call__ = nn.Module.__call__


def with_head_of(net):
    """Return a loss on features that calls a layer of a network."""
    return lambda student, target: (net.module.head(student) - net.module.head(target)).square().mean()


def test_weights_of_a_loss_that_is_no_module_are_not_trained():
    def notices(loss):
        return notices_of(student, Match(teacher, loss, **hidden_taps(student, teacher)))

    teacher, student = nets()
    message = "has weights that are not trained, such as one of (5, 5); make the loss an nn.Module that holds them"
    assert [message in notice for notice in notices(WithProjector())] == [True]
    projected = WithProjector()
    assert [message in notice for notice in notices(lambda student, target: projected(student, target))] == [True]
    for loss in (WithProjector(trained=False), ModuleWithProjector(), with_head_of(teacher), with_head_of(student)):
        assert notices(loss) == ()


def test_weights_of_classes_without_positions_are_refused_with_their_shape():
    labels = (torch.arange(8 * 24).reshape(8, 2, 12) % 3 == 0).float()
    rows = TensorDataset(torch.randn(8, 4, 12), labels)
    for weights, problems in ((torch.ones(2), 1), (torch.ones(2, 1), 0)):
        truth = Truth(IgnoreUnknown(nn.BCEWithLogitsLoss(pos_weight=weights)))
        plan = check(one_stage(Net("student", nn.Conv1d(4, 2, 1)), truth, TorchData(rows, rows, classes=["a", "b"])))
        assert len(plan.problems) == problems
        advice = "; its pos_weight has a value for each class, so give it positions: .view(-1, 1)"
        assert all(problem.endswith(advice) for problem in plan.problems)


def test_weights_of_classes_are_not_named_for_another_error():
    class Failing(nn.CrossEntropyLoss):
        def forward(self, student, target):
            raise ValueError("it needs a file")

    labels = torch.arange(8 * 12).reshape(8, 12) % 2
    rows = TensorDataset(torch.randn(8, 4, 12), labels)
    truth, data = Truth(Failing(weight=torch.ones(2))), TorchData(rows, rows, task="multiclass", classes=2)
    (problem,) = check(one_stage(Net("student", nn.Conv1d(4, 2, 1)), truth, data)).problems
    assert "it needs a file" in problem
    assert "positions" not in problem


def test_outputs_with_the_classes_of_frames_last_are_named():
    labels = (torch.arange(8 * 24).reshape(8, 2, 12) % 3 == 0).float()
    rows = TensorDataset(torch.randn(8, 12, 4), labels)
    data = TorchData(rows, rows, classes=["a", "b"])
    (problem,) = check(one_stage(Net("student", nn.Linear(4, 2)), Truth(nn.BCEWithLogitsLoss()), data)).problems
    assert "if the 2 are the classes, pass Net(..., channels_last=True)" in problem
    assert problem.endswith("if the 12 are, move those of the labels, labels.movedim(-1, 1)")


def plan_of_groups(train, test):
    data = tiny_data()
    data.train.groups, data.test.groups = train, test
    return check(one_stage(tiny_net("student"), plain_goal(), data))


def test_groups_that_are_in_two_splits_are_noticed():
    count = len(tiny_data().train)
    plan = plan_of_groups(torch.arange(count), torch.tensor([3, 3, 3, count, 4, count]))
    assert any("2 of the 3 groups of the test data are in the train data too: " in notice for notice in plan.notices)
    apart = plan_of_groups(torch.arange(count), torch.arange(6) + count)
    assert not any("train data too" in notice for notice in apart.notices)
    assert not any("train data too" in notice for notice in plan_of_groups(None, torch.arange(6)).notices)


@pytest.mark.parametrize(("groups", "noticed"), [(1, False), (3, True), (9, True), (10, False)])
def test_a_test_split_of_few_groups_is_noticed(groups, noticed):
    inputs = torch.randn(20, 4)
    rows = TensorDataset(inputs, torch.arange(20) % 3)
    data = TorchData(rows, rows, rows)
    data.test.groups = torch.arange(20) % groups
    plan = check(replace(one_stage(tiny_net("student"), plain_goal()), data=data))
    text = f"the test data have {groups} groups, and intervals over so few are too narrow"
    assert any(text in notice for notice in plan.notices) is noticed


class NamedSplit(Split):
    """Samples with names, such as those of their files."""

    def __init__(self, numbers):
        self.numbers, self.ids = torch.tensor(numbers), torch.tensor(numbers)

    def batch(self, rows, draw):
        return Batch(self.numbers[rows, None].float().expand(-1, 4), self.numbers[rows] % 3, self.ids[rows], draw)

    def report_names(self, rows):
        return [f"scan{number}" for number in self.numbers[rows].tolist()]


class Fold(Data):
    """Nine scans, of which three are in the test split."""

    classes, task, draws, fingerprint = ("a", "b", "c"), "multiclass", 1, "scans"

    def __init__(self, fold):
        self.test = self.validation = NamedSplit(range(3 * fold, 3 * fold + 3))
        self.train = NamedSplit([number for number in range(9) if number not in self.test.numbers.tolist()])


def test_a_teacher_that_was_trained_on_test_samples_of_another_fold_is_noticed(tmp_path):
    def recipe(fold, weights=None):
        teacher, student = tiny_net("teacher", weights=weights), tiny_net("student")
        objective = plain_goal() + Match(teacher, SoftTargets()) if weights else plain_goal()
        return one_stage(student if weights else teacher, objective, Fold(fold))

    run(recipe(0), out=tmp_path / "teacher", measure=False)
    assert not any("were trained on samples" in notice for notice in check(recipe(0, tmp_path / "teacher")).notices)
    (notice,) = [n for n in check(recipe(1, tmp_path / "teacher")).notices if "were trained on samples" in n]
    assert notice.startswith("the weights of net 'teacher' were trained on samples with the names of 3 of the 3 test")
    further = one_stage(tiny_net("teacher", weights=tmp_path / "teacher"), plain_goal(), Fold(1))
    run(further, out=tmp_path / "further", measure=False)
    assert any("were trained on samples" in notice for notice in check(recipe(1, tmp_path / "further")).notices)
    (tmp_path / "teacher" / "training-names.safetensors").write_bytes(b"damaged")
    assert not any("were trained on samples" in notice for notice in check(recipe(1, tmp_path / "teacher")).notices)


@pytest.mark.parametrize(
    ("names", "has_digests"),
    [
        (lambda rows: rows.tolist(), True),
        (lambda rows: [Path("a\udcff") / str(row) for row in rows.tolist()], True),
        (lambda rows: [f"\ud83d {row}" for row in rows.tolist()], True),  # half of an emoji, as in JSON
        (lambda rows: 1 / 0, False),
        (lambda rows: (), False),
    ],
)
def test_names_of_samples_may_be_anything(monkeypatch, names, has_digests):
    split = NamedSplit(range(4))
    monkeypatch.setattr(split, "report_names", names)
    assert len(name_digests(split).unique()) == 4 * has_digests


@pytest.mark.parametrize("groups", [torch.arange(5), torch.rand(6), ["a", "a", "b", "b", "c", "c"]])
def test_groups_that_are_not_an_integer_for_each_sample_are_found_before_the_run(groups):
    (problem,) = plan_of_groups(None, groups).problems
    assert problem.startswith("groups of the test data must be integers, one per row: (6,); got ")
    assert problem.endswith("such as with numpy.unique(names, return_inverse=True)[1]")


@pytest.mark.parametrize(
    "kind",
    [
        lambda groups: pd.Series(groups, index=range(10, 16)),
        lambda groups: np.array(groups)[::-1],
        lambda groups: np.array(groups, dtype=">i8"),
    ],
    ids=["rows of a table", "reversed", "of another byte order"],
)
def test_groups_may_be_any_array_of_integers(kind):
    assert not plan_of_groups(None, kind([0, 0, 1, 1, 2, 2])).problems


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"shuffle": True}, {"batch_sampler": "random"}])
def test_groups_of_a_loader_that_shuffles_are_refused(options):
    rows = TensorDataset(torch.randn(6, 4), torch.arange(6) % 3)
    if "batch_sampler" in options:
        options = {"batch_sampler": BatchSampler(RandomSampler(rows), 2, drop_last=False)}
    data = TorchData(DataLoader(rows, 2, shuffle=True), DataLoader(rows, **options), classes=3)
    data.train.groups, data.validation.groups = [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]
    problems = check(one_stage(tiny_net("student"), plain_goal(), data)).problems
    expected = "the validation data have groups, but their DataLoader shuffles the samples"
    assert [text.startswith(expected) for text in problems] == [True] * ("batch_size" not in options)


@pytest.mark.parametrize(("context", "is_noticed"), [(nullcontext, True), (torch.random.fork_rng, False)])
def test_a_recipe_that_sets_the_seed_itself_is_noticed(context, is_noticed):
    def recipe():
        with context():
            student = tiny_net("student", seed=5)  # by torch.manual_seed
        return one_stage(student, plain_goal())

    recorder = Recorder()
    run(recipe, seed=3, callbacks=[recorder])
    assert any("recipe() sets the seed of torch, to 5" in notice for notice in recorder.notices) == is_noticed
