"""The module of a stage: which tensors its terms compare, and which parameters get a gradient."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, BuildContext, Inputs, LinearRamp, Match, Net, Peer, RecipeError, Stage, Tap, Training, Truth
from kdkit.engine.stage.module import DistillationModule
from kdkit.losses import Hint, SampleWeighted, SoftTargets
from kdkit.recipe.objective import as_objective
from kdkit.teachers import Frozen
from tests.helpers.tiny import Mlp, hooks_of, plain_goal, state_of, tiny_net

NAMES = ("a", "b", "c")
CONTEXT = BuildContext(classes=NAMES, task="multiclass", samples=8, ids=True)
MULTILABEL = BuildContext(classes=NAMES, task="multilabel", samples=8, ids=True)
TRAINING = Training(epochs=1)


def random_batch(labels=(0, 1, 2, 0)):
    labels = torch.tensor(labels)
    return Batch(torch.randn(len(labels), 4), labels, torch.arange(len(labels)))


def module_of(objectives, context=CONTEXT):
    return DistillationModule(Stage(objectives, TRAINING), context)


def run_teachers(stage, batch):
    """Return the outputs of the frozen teachers of a stage, by name."""
    sessions = {teacher.name: Frozen(teacher, taps) for teacher, taps in stage.teachers.items()}
    outputs = {name: session(batch) for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    return outputs


def test_terms_are_unweighted_and_have_the_labels_of_the_objective():
    teacher, student, batch = tiny_net("teacher", trained=True), tiny_net("student", seed=1), random_batch()
    stage = Stage({student: 0.3 * plain_goal() + LinearRamp(end=2) * Match(teacher, SoftTargets())}, TRAINING)
    # In eval mode, since the student runs again below and dropout or batch statistics would differ.
    module, teacher_outputs = DistillationModule(stage, CONTEXT).eval(), run_teachers(stage, batch)
    terms = module(batch, teacher_outputs)
    assert list(terms) == ["truth", "teacher/soft_targets"]
    torch.testing.assert_close(terms["truth"], F.cross_entropy(student(batch), batch.labels))
    teacher.module.eval()
    torch.testing.assert_close(terms["teacher/soft_targets"], SoftTargets()(student(batch), teacher(batch)))
    assert module.weights(0.5) == {"truth": 0.3, "teacher/soft_targets": 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.MultiMarginLoss(),
        F.cross_entropy,
        partial(F.cross_entropy, label_smoothing=0.1),
        SampleWeighted(nn.CrossEntropyLoss()),
    ],
    ids=["module", "weight", "no half-precision kernel", "function", "partial", "wrapped"],
)
def test_losses_of_torch_get_half_precision_outputs_in_float32(loss, dtype):
    student = Net("student", nn.Linear(4, 3, dtype=dtype), view=Inputs(dtype=dtype))
    batch = dataclasses.replace(random_batch(), weights=torch.ones(4))
    (value,) = module_of({student: Truth(loss)}, dataclasses.replace(CONTEXT, has_weights=True))(batch, {}).values()
    expected = loss.loss if isinstance(loss, SampleWeighted) else loss
    torch.testing.assert_close(value, expected(student(batch).float(), batch.labels).mean(), rtol=1e-6, atol=0)
    assert value.dtype == torch.float32


def test_a_loss_of_torch_compares_two_sides_of_half_precision_in_float32():
    teacher, student = (
        Net(name, nn.Linear(4, 3, dtype=torch.bfloat16), view=Inputs(dtype=torch.bfloat16), trained=name == "teacher")
        for name in ("teacher", "student")
    )
    batch, stage = random_batch(), Stage({student: as_objective(Match(teacher, nn.L1Loss()))}, TRAINING)
    (value,) = DistillationModule(stage, CONTEXT)(batch, run_teachers(stage, batch)).values()
    torch.testing.assert_close(value, F.l1_loss(student(batch).float(), teacher(batch).float()), rtol=1e-6, atol=0)


def test_a_user_defined_loss_gets_outputs_in_the_precision_of_the_network():
    dtypes = []

    def loss(outputs, _labels):
        dtypes.append(outputs.dtype)
        return outputs.sum()

    student = Net("student", nn.Linear(4, 3, dtype=torch.bfloat16), view=Inputs(dtype=torch.bfloat16))
    module_of({student: Truth(loss)})(random_batch(), {})
    assert dtypes == [torch.bfloat16]


def test_labels_of_terms_start_with_the_net_if_a_stage_trains_several():
    first, second = tiny_net("one"), tiny_net("two", seed=1)
    terms = module_of({first: plain_goal(), second: plain_goal()})(random_batch(), {})
    assert list(terms) == ["one: truth", "two: truth"]
    assert terms["one: truth"] != terms["two: truth"]  # the networks have different weights


def test_a_term_on_the_labels_takes_its_tap_instead_of_the_outputs():
    student, batch = tiny_net("student"), random_batch()
    student.module.auxiliary = auxiliary = nn.Linear(5, 3)

    def run_auxiliary(_module, _args, output):
        auxiliary(output)

    student.module.act.register_forward_hook(run_auxiliary)
    loss = nn.CrossEntropyLoss()
    module = module_of({student: plain_goal() + Truth(loss, "deep", student=Tap(auxiliary))}).eval()
    terms = module(batch, {})
    hidden = student.module.act(student.module.norm(student.module.hidden(batch.inputs)))
    torch.testing.assert_close(terms["deep"], F.cross_entropy(auxiliary(hidden), batch.labels))
    assert terms["deep"] != terms["truth"]
    terms["deep"].backward()
    assert auxiliary.weight.grad is not None
    assert student.module.head.weight.grad is None


def test_a_frozen_teacher_gets_no_gradient_and_keeps_its_statistics():
    teacher, student, batch = tiny_net("teacher"), tiny_net("student", seed=1), random_batch()
    teacher.module.train()
    before = state_of(teacher.module)["tensors"]
    hint = Match(teacher, nn.MSELoss(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    stage = Stage({student: Match(teacher, SoftTargets()) + hint}, TRAINING)
    terms = DistillationModule(stage, CONTEXT)(batch, run_teachers(stage, batch))
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert all(parameter.grad is not None for parameter in student.module.parameters())
    assert all(torch.equal(teacher.module.state_dict()[key], value) for key, value in before.items())
    assert teacher.module.training


def test_a_frozen_network_in_a_loss_runs_in_eval_mode_and_keeps_its_statistics():
    class Perceptual(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).requires_grad_(False)

        def forward(self, student, target):
            return F.mse_loss(self.network(student), self.network(target))

    loss, teacher, student, batch = Perceptual(), tiny_net("teacher"), tiny_net("student", seed=1), random_batch()
    before = state_of(loss)["tensors"]
    stage = Stage({student: 1.0 * Match(teacher, loss)}, TRAINING)
    module = DistillationModule(stage, CONTEXT).train()
    module(batch, run_teachers(stage, batch))
    assert loss.training
    assert not any(part.training for part in loss.network.modules())
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in before.items())


def test_closing_a_frozen_teacher_restores_the_mode_of_every_submodule():
    teacher = tiny_net("teacher")
    teacher.module.train()
    teacher.module.norm.eval()  # a mode that differs from that of its parent
    before = state_of(teacher.module)
    frozen = Frozen(teacher, [Tap(teacher.module.head)])
    assert not any(module.training for module in teacher.module.modules())
    frozen(random_batch())
    frozen.close()
    assert state_of(teacher.module)["modes"] == before["modes"]
    assert hooks_of(teacher.module) == 0


def test_a_side_of_several_taps_is_a_tuple():
    sides = []

    def record_sides(student, target):
        sides.extend([student, target])
        return student[0].mean()

    teacher, student, batch = tiny_net("teacher", trained=True), tiny_net("student"), random_batch()
    student_taps = (Tap(student.module.hidden), Tap(student.module.head))
    match = Match(teacher, record_sides, student=student_taps, target=(Tap(teacher.module.head),))
    stage = Stage({student: match}, TRAINING)
    DistillationModule(stage, CONTEXT)(batch, run_teachers(stage, batch))
    assert [tuple(tensor.shape) for tensor in sides[0]] == [(4, 5), (4, 3)]
    assert [tuple(tensor.shape) for tensor in sides[1]] == [(4, 3)]  # a tuple, although of a single tap


def test_a_feature_may_be_matched_to_outputs():
    teacher, student, batch = tiny_net("teacher", trained=True), tiny_net("student"), random_batch()
    stage = Stage({student: Match(teacher, nn.MSELoss(), student=Tap(student.module.head))}, TRAINING)
    module = DistillationModule(stage, CONTEXT).eval()
    teacher.module.eval()
    value = module(batch, run_teachers(stage, batch))["teacher/mse_loss"]
    torch.testing.assert_close(value, F.mse_loss(student(batch), teacher(batch)))


def test_a_loss_gets_the_keyword_arguments_of_its_signature():
    received = {}

    def loss(student, target, *, labels, ids, progress):
        received.update(labels=labels, ids=ids, progress=progress.item())
        return student.sum()

    batch = random_batch()
    module = module_of({tiny_net("student"): Truth(loss)})
    module.progress.fill_(0.25)
    module(batch, {})
    assert received == {"labels": batch.labels, "ids": batch.ids, "progress": 0.25}


@pytest.mark.parametrize(
    ("context", "classes"),
    [(dataclasses.replace(CONTEXT, ignored_labels=(-100,)), NAMES), (CONTEXT, ("a", "b"))],
    ids=["samples without a label", "samples of classes that the student lacks"],
)
def test_a_loss_gets_the_inputs_of_the_samples_that_are_not_left_out(context, classes):
    received = {}

    def loss(student, target, *, labels, inputs):
        received.update(labels=labels, inputs=inputs)
        return student.sum()

    teacher = tiny_net("teacher", trained=True, outputs=len(classes), classes=classes)
    student = tiny_net("student", outputs=len(classes), classes=classes)
    batch = random_batch((0, -100 if context.ignored_labels else 2, 1))
    stage = Stage({student: Match(teacher, loss)}, TRAINING)
    DistillationModule(stage, context)(batch, run_teachers(stage, batch))
    assert received["labels"].tolist() == [0, 1]
    assert torch.equal(received["inputs"], batch.inputs[[0, 2]])


def test_parameters_of_losses_are_trained_but_are_not_part_of_the_net():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    hint = Hint(projector="always")
    hint.build((torch.Size((2, 5)),), (torch.Size((2, 7)),), CONTEXT, None)
    match = Match(teacher, hint, student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    module = module_of({student: match})
    trained = {id(parameter) for parameter in module.parameters()}
    assert {id(parameter) for parameter in hint.parameters()} <= trained
    assert trained.isdisjoint(id(parameter) for parameter in teacher.module.parameters())
    assert len(trained) == len(list(student.module.parameters())) + 2  # weight and bias of the projector


def test_multilabel_columns_of_classes_that_a_net_lacks_are_dropped():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    batch = Batch(torch.randn(3, 4), torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]]))
    value = module_of({student: Truth(nn.BCEWithLogitsLoss())}, MULTILABEL)(batch, {})["truth"]
    expected = F.binary_cross_entropy_with_logits(student(batch), batch.labels[:, [2, 0]])
    torch.testing.assert_close(value, expected)


def test_multiclass_samples_of_classes_that_a_net_lacks_are_dropped():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    batch = random_batch((0, 1, 2, 1))  # a, b, c, b: the net has no "b"
    value = module_of({student: plain_goal()})(batch, {})["truth"]
    torch.testing.assert_close(value, F.cross_entropy(student(batch)[[0, 2]], torch.tensor([1, 0])))


def test_a_batch_without_a_shared_class_has_a_finite_loss_without_effect():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    value = module_of({student: plain_goal()})(random_batch((1, 1)), {})["truth"]
    value.backward()
    assert value.item() == 0
    assert not student.module.weight.grad.any()


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy, ignore_index=255, label_smoothing=0.1)],
    ids=["module", "function", "partial"],
)
def test_a_batch_without_a_label_has_a_loss_of_zero_and_no_gradient(loss):
    student = tiny_net("student")
    context = dataclasses.replace(CONTEXT, ignored_labels=(-100, 255))
    value = module_of({student: Truth(loss)}, context)(random_batch((-100, 255)), {})["truth"]
    value.backward()
    assert value.item() == 0
    assert not any(parameter.grad.any() for parameter in student.module.parameters())


def test_a_teacher_with_different_classes_is_compared_on_the_shared_ones():
    teacher = Net("teacher", nn.Linear(4, 4), classes=["x", "c", "b", "y"], trained=True)
    student, batch = Net("student", nn.Linear(4, 3)), random_batch()
    stage = Stage({student: Match(teacher, SoftTargets())}, TRAINING)
    value = DistillationModule(stage, CONTEXT)(batch, run_teachers(stage, batch))["teacher/soft_targets"]
    expected = SoftTargets()(student(batch)[:, [1, 2]], teacher(batch)[:, [2, 1]])  # b, c
    torch.testing.assert_close(value, expected)


def test_features_are_compared_whatever_the_classes_are():
    teacher = Net("teacher", Mlp(outputs=2), classes=["x", "y"], trained=True)
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    stage = Stage({student: Match(teacher, nn.MSELoss(), **taps)}, TRAINING)
    batch = random_batch()
    assert DistillationModule(stage, CONTEXT)(batch, run_teachers(stage, batch))["teacher/mse_loss"] > 0


def test_a_module_that_cannot_be_created_leaves_no_hook():
    teacher = tiny_net("teacher", trained=True)
    student = tiny_net("student", classes=["x", "y", "z"])
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    with pytest.raises(RecipeError, match="share no class"):
        module_of({student: Match(teacher, nn.MSELoss(), **taps) + plain_goal()})
    # The taps are opened before the terms are bound, and one term cannot be bound.
    assert hooks_of(student.module) == 0


def test_captured_features_of_one_batch_are_not_used_for_the_next():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    stage = Stage({student: Match(teacher, nn.MSELoss(), **taps)}, TRAINING)
    module = DistillationModule(stage, CONTEXT).eval()
    first, second = random_batch(), random_batch()
    module(first, run_teachers(stage, first))
    value = module(second, run_teachers(stage, second))["teacher/mse_loss"]
    expected = F.mse_loss(student.module.hidden(second.inputs), teacher.module.hidden(second.inputs))
    torch.testing.assert_close(value, expected)
    module.close()
    assert hooks_of(student.module) == 0


def test_an_objective_may_have_a_single_term():
    assert list(module_of({tiny_net("student"): as_objective(plain_goal())})(random_batch(), {})) == ["truth"]


def test_students_that_share_a_layer_get_the_features_of_their_own_pass():
    torch.manual_seed(0)
    trunk, compared = nn.Linear(4, 6), {}

    class Half:
        """One half of the inputs; the other half is 0."""

        def __init__(self, first):
            self.key = f"half {first}"
            self.mask = torch.zeros(4)
            self.mask[first : first + 2] = 1

        def __call__(self, batch):
            return (batch.inputs * self.mask,), {}

    def compare(name):
        def loss(student, target):
            compared[name] = student.detach(), target.detach()
            return F.mse_loss(student, target)

        return loss

    views = {"first": Half(0), "second": Half(2)}
    first, second = (Net(name, nn.Sequential(trunk, nn.Linear(6, 3)), view=view) for name, view in views.items())
    module = module_of(
        {
            net: plain_goal() + Match(Peer(other), compare(net.name), student=Tap(trunk), target=Tap(trunk))
            for net, other in ((first, second), (second, first))
        }
    )
    batch = random_batch()
    module(batch, {})
    features = {name: trunk(*view(batch)[0]).detach() for name, view in views.items()}
    assert torch.equal(compared["first"][0], features["first"])
    assert torch.equal(compared["first"][1], features["second"])
    assert torch.equal(compared["second"][0], features["second"])
    assert torch.equal(compared["second"][1], features["first"])
    module.close()
