"""A Distiller in a bare loop computes what hand-written hooks and losses do, and holds no teacher."""

import copy
import gc
import pickle
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import kdkit
from kdkit import (
    AttentionTap,
    Distiller,
    Ema,
    LinearRamp,
    Match,
    Net,
    Past,
    Peer,
    RecipeError,
    Tap,
    Truth,
    model_loss,
    tap,
)
from kdkit.errors import CheckError, DataError
from kdkit.losses import CRD, DKD, TAID, Cosine, Hint, IgnoreUnknown, SoftTargets
from kdkit.nets.taps import OpenTaps
from kdkit.teachers.base import OnlineTeacher, TeacherOutput, TeacherSession
from tests.helpers.command_line import environment
from tests.helpers.tiny import Mlp, hooks_of

INPUTS, LABELS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def networks(hidden=7):
    torch.manual_seed(0)
    return Net("teacher", Mlp(hidden=hidden), trained=True), Net("student", Mlp(hidden=5))


def features(student, teacher):
    return {"student": Tap(student.module.norm), "target": Tap(teacher.module.norm)}


def test_a_teacher_that_computes_in_inference_mode_teaches_as_one_without_gradients():
    teacher, student = networks(hidden=5)
    expected = copy.deepcopy(student.module)
    objective = Match(teacher, nn.MSELoss())
    objective += Match(teacher, nn.MSELoss(), label="features", **features(student, teacher))
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller:
        distiller(INPUTS, LABELS).loss.backward()
        gradients = [parameter.grad for parameter in student.module.parameters()]
    teacher.module.forward = torch.inference_mode()(teacher.module.forward)
    student.module.load_state_dict(expected.state_dict())
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller:
        distiller.zero_grad()
        distiller(INPUTS, LABELS).loss.backward()
    for parameter, gradient in zip(student.module.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


class Tied(nn.Module):
    """A network whose first and last layers share a weight, as language models do, and one of two buffers is saved."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("saved_scale", self.scale)

    def forward(self, inputs):
        return self.hidden(self.last(self.first(inputs).relu()))


def tied_distiller(seed):
    torch.manual_seed(seed)
    return Distiller(Net("student", Tied()), Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS))


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: nn.Sequential(module), copy.deepcopy])
def test_the_state_dict_has_tied_weights_once_and_loads_in_both_forms(wrap, tmp_path):
    saved, loaded = wrap(tied_distiller(0)), wrap(tied_distiller(1))
    state = saved.state_dict()
    save_file(state, tmp_path / "model.safetensors")  # as the Trainer of transformers does; it refuses tied weights
    assert sum(key.endswith("weight") for key in state) == 2
    assert [key.rpartition(".")[2] for key in state if "scale" in key] == ["saved_scale"]
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    both = {**state, **{key.replace("first.weight", "last.weight"): value for key, value in state.items()}}
    loaded.load_state_dict(both, strict=True)
    weights = Net("plain", Tied(), weights=tmp_path / "model.safetensors").module.state_dict()
    assert {"first.weight", "last.weight"} < weights.keys()


def test_a_bare_loop_trains_like_one_with_hooks_and_losses_by_hand():
    teacher, student = networks(hidden=5)
    by_hand, teacher_by_hand = copy.deepcopy(student.module), copy.deepcopy(teacher.module).eval()
    objective = (
        0.3 * Truth(nn.CrossEntropyLoss())
        + 0.7 * Match(teacher, SoftTargets(temperature=2.0))
        + 2.0 * Match(teacher, nn.MSELoss(), label="features", **features(student, teacher))
    )
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller:
        distiller.train()
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        for _ in range(5):
            loss, terms, _ = distiller(INPUTS, LABELS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert list(terms) == ["truth", "teacher/soft_targets", "features"]
    captured = {}
    for name, module in (("student", by_hand), ("teacher", teacher_by_hand)):
        # The in-place ReLU changes the tensor afterwards.
        module.norm.register_forward_hook(lambda _m, _a, output, name=name: captured.update({name: output.clone()}))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(5):
        with torch.no_grad():
            target = teacher_by_hand(INPUTS)
        output = by_hand.train()(INPUTS)
        soft = F.kl_div(F.log_softmax(output / 2, 1), F.softmax(target / 2, 1), reduction="batchmean") * 4
        expected = 0.3 * F.cross_entropy(output, LABELS) + 0.7 * soft
        expected = expected + 2.0 * F.mse_loss(captured["student"], captured["teacher"])
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    torch.testing.assert_close(loss, expected)
    for key, value in by_hand.state_dict().items():
        torch.testing.assert_close(distiller.student_state_dict()[key], value)


def test_the_state_dict_of_a_wrapped_student_has_the_keys_of_the_plain_network():
    student = Net("student", nn.DataParallel(Mlp()))
    with Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS)) as distiller:
        assert distiller.student_state_dict().keys() == Mlp().state_dict().keys()


def test_its_parameters_are_those_of_the_student_and_of_projectors_and_teachers_stay_as_they_are():
    teacher, student = networks()
    before = copy.deepcopy(teacher.module.state_dict())
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, Hint(), **features(student, teacher))
    distiller = Distiller(student, objective, (INPUTS, LABELS))
    student_count = sum(parameter.numel() for parameter in student.module.parameters())
    assert sum(parameter.numel() for parameter in distiller.parameters()) == student_count + 5 * 7 + 7
    assert sum(parameter.numel() for parameter in distiller.module.losses.parameters()) == 5 * 7 + 7
    trained = {id(parameter) for parameter in distiller.parameters()}
    assert trained.isdisjoint(map(id, teacher.module.parameters()))
    distiller.train()
    assert not teacher.module.training
    distiller(INPUTS, LABELS).loss.backward()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.module.state_dict().items())
    again = Mlp(hidden=5)
    again.load_state_dict(distiller.student_state_dict())
    state = distiller.state_dict()
    assert not any("teacher" in key for key in state)
    distiller.load_state_dict(state)
    distiller.close()
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0


def test_a_distiller_that_is_deleted_removes_its_hooks_and_restores_the_mode_of_its_teachers():
    teacher, student = networks()
    teacher.module.train()
    distiller = Distiller(student, Match(teacher, Hint(), **features(student, teacher)), (INPUTS, LABELS))
    distiller(INPUTS, LABELS)
    assert hooks_of(student.module) == hooks_of(teacher.module) == 1
    assert not teacher.module.training
    del distiller
    gc.collect()
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


@pytest.mark.slow
def test_a_program_that_does_not_close_its_distiller_ends_without_an_error_message():
    program = """
import torch
from kdkit import Distiller, Match, Net
teacher = Net("teacher", torch.nn.Linear(4, 3), trained=True)
example = torch.ones(2, 4), torch.arange(2)
distiller = Distiller(Net("student", torch.nn.Linear(4, 3)), 1.0 * Match(teacher, torch.nn.MSELoss()), example)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_calls_with_their_own_progress_have_one_backward_pass():
    def changing(student, labels, progress):
        return progress * student.square().mean()

    student = Net("student", Mlp().double())  # the dtype of the weights that a ramp changes
    example = INPUTS.double(), LABELS
    for term in (LinearRamp(start=0, end=1) * Truth(nn.CrossEntropyLoss()), Truth(changing)):
        with Distiller(student, term, example=example) as distiller:
            losses = [distiller(*example, progress=progress).loss for progress in (0.25, 0.75)]
            sum(losses).backward()


def test_a_ramp_follows_the_progress_that_is_passed():
    teacher, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + LinearRamp() * Match(teacher, SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller:
        distiller.eval()
        for progress in (0.0, 0.25, 1.0):
            loss, terms, _ = distiller(INPUTS, LABELS, progress=progress)
            torch.testing.assert_close(loss, terms["truth"] + progress * terms["teacher/soft_targets"])


def test_a_teacher_that_follows_the_student_moves_after_a_step():
    _, student = networks()
    average = Ema(student, decay=0.5)
    with Distiller(
        student, Truth(nn.CrossEntropyLoss()) + Match(average, SoftTargets()), (INPUTS, LABELS)
    ) as distiller:
        distiller.eval()
        assert distiller(INPUTS, LABELS).terms["average of student/soft_targets"] == pytest.approx(0, abs=1e-6)
        with torch.no_grad():
            student.module.head.weight.mul_(5)
        apart = distiller(INPUTS, LABELS).terms["average of student/soft_targets"].item()
        for _ in range(3):
            distiller.on_step()
        assert distiller(INPUTS, LABELS).terms["average of student/soft_targets"] < apart / 2


@pytest.mark.parametrize("fused", [True, False])  # torch does not count the changes of a fused optimizer
@pytest.mark.parametrize("missing", [True, False])
def test_a_projector_that_the_optimizer_lacks_is_a_warning(missing, fused):
    teacher, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, Hint(), **features(student, teacher))
    objective += 0.0 * Match(teacher, Hint(), label="off", **features(student, teacher))
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD((student.module if missing else distiller).parameters(), lr=0.1, fused=fused)
        for _ in range(12):
            distiller(INPUTS, LABELS).loss.backward()
            optimizer.step()
    messages = [str(warning.message) for warning in caught]
    expected = "the loss of 'teacher/hint' has weights, such as those of a projector, that are not: pass distiller."
    assert len(messages) == missing
    assert all(expected in message for message in messages)


@pytest.mark.parametrize("calls", [True, False])
def test_a_student_that_moves_without_its_average_is_a_warning(calls):
    _, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + Match(Ema(student), SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, fused=True)
        distiller.load_state_dict(distiller.state_dict())
        for _ in range(5):
            for _ in range(2):  # accumulated
                distiller(INPUTS, LABELS).loss.backward()
            optimizer.step()
            if calls:
                distiller.on_step()
    messages = [str(warning.message) for warning in caught]
    expected = "'average of student' follows the student, but distiller.on_step() is not called after optimizer steps"
    assert [expected in message for message in messages] == [True] * (not calls)
    assert all(warning.filename == __file__ for warning in caught)


def test_a_loss_with_a_memory_gets_the_ids_of_the_samples():
    teacher, student = networks()
    crd = Match(teacher, CRD(negatives=4, width=8), **features(student, teacher))
    with Distiller(student, Truth(nn.CrossEntropyLoss()) + crd, (INPUTS, LABELS), samples=8) as distiller:
        assert distiller(INPUTS, LABELS, ids=torch.arange(8)).loss.isfinite()
        with pytest.raises(
            RecipeError, match=r"'teacher/crd' needs the ids .*; call distiller\(inputs, labels, ids=ids"
        ):
            distiller(INPUTS, LABELS)
        for ids, got in (
            (torch.arange(4), r"int64 \(4,\)"),
            (torch.arange(8.0), r"float32 \(8,\)"),
            ([0] * 8, "a list"),
        ):
            with pytest.raises(RecipeError, match=rf"ids must be a tensor of integers, \(8,\) .* got {got}"):
                distiller(INPUTS, LABELS, ids=ids)
        for ids, got in ((torch.arange(8) + 1, 8), (torch.arange(8) - 1, -1)):
            with pytest.raises(RecipeError, match=f"from 0 to 7, because samples=8; got {got}"):
                distiller(INPUTS, LABELS, ids=ids)
    with pytest.raises(CheckError, match="a Distiller gets samples=N, and ids= in each call"):
        Distiller(student, Truth(nn.CrossEntropyLoss()) + crd, (INPUTS, LABELS))


@pytest.mark.parametrize("calls", [True, False])
def test_a_past_whose_epochs_do_not_end_is_a_warning(calls):
    _, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + Match(Past(student), SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS), samples=8) as distiller:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(5):
                distiller(INPUTS, LABELS, ids=torch.arange(8))
                if calls:
                    distiller.on_epoch_end()
        messages = [str(warning.message) for warning in caught]
        assert ["but distiller.on_epoch_end() is not called" in message for message in messages] == [True] * (not calls)
        assert all(warning.filename == __file__ for warning in caught)


class LastBatch(TeacherSession):
    """The outputs of the student for the batch before."""

    last = torch.zeros(8, 3)

    def __call__(self, batch):
        return TeacherOutput(self.last)

    def observe(self, batch, outputs):
        self.last = outputs["student"]


class LastOutputs(OnlineTeacher):
    name = "last outputs"

    def open(self, taps, context):
        return LastBatch()


def test_a_teacher_that_does_not_change_with_epochs_needs_no_call_after_them():
    _, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + Match(LastOutputs(student), SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS), samples=8) as distiller, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            distiller(INPUTS, LABELS)


@pytest.mark.parametrize("classes", ["abc", 3.0, True, 0, ["a", "a", "b"]])
def test_classes_that_are_no_names_and_no_number_are_refused(classes):
    _, student = networks()
    with pytest.raises(RecipeError, match="the classes of a Distiller must be "):
        Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS), classes=classes)


def test_labels_beyond_the_classes_are_named_with_their_range():
    _, student = networks()
    with pytest.raises(CheckError, match="one label is 3, but the 3 classes are numbered 0 to 2"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS + 1))


def test_labels_by_class_need_their_task():
    _, student = networks()
    labels = torch.tensor([[1, 1, 0], [0, 0, 1]]).repeat(4, 1)
    with pytest.raises(CheckError, match="if each class has a label, pass task='multilabel'"):
        Distiller(student, Truth(nn.BCEWithLogitsLoss()), (INPUTS, labels))
    with Distiller(student, Truth(nn.BCEWithLogitsLoss()), (INPUTS, labels), task="multilabel", classes=3) as distiller:
        assert distiller(INPUTS, labels).loss.isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_moving_a_distiller_moves_its_teachers():
    teacher, student = networks()
    with Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS)) as distiller:
        distiller.to("cuda")
        assert distiller(INPUTS.cuda(), LABELS.cuda()).loss.is_cuda


def test_its_dtype_is_also_that_of_the_teachers():
    teacher, student = networks()
    with Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS)) as distiller:
        distiller.double()
        assert distiller(INPUTS.double(), LABELS).loss.dtype == torch.float64
        assert teacher.module.head.weight.dtype == torch.float64


def test_a_student_with_an_output_in_training_only_is_validated_before_the_first_step():
    class Deep(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return (outputs, 2 * outputs) if self.training else outputs

    module = Deep(4, 3)
    deep = Truth(F.cross_entropy, label="deep", student=Tap(module, element=1))
    net = Net("student", module, element=0)
    with Distiller(net, Truth(F.cross_entropy) + deep, example=(INPUTS, LABELS)) as distiller:
        module.eval()
        assert torch.equal(module(INPUTS), F.linear(INPUTS, module.weight, module.bias))
        distiller.train()
        assert set(distiller(INPUTS, LABELS).terms) == {"truth", "deep"}


def test_an_interrupt_while_a_distiller_is_created_leaves_no_hook():
    class Interrupted(Mlp):
        def forward(self, inputs):
            raise KeyboardInterrupt

    teacher, student = Net("teacher", Mlp(), trained=True), Net("student", Interrupted())
    objective = Match(teacher, Hint(), **features(student, teacher))
    with pytest.raises(KeyboardInterrupt):
        Distiller(student, objective, (INPUTS, LABELS), classes=["a", "b", "c"])
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


def test_problems_are_found_when_a_distiller_is_created_and_leave_no_hook():
    teacher, student = networks()
    wrong = Match(teacher, nn.MSELoss(), **features(student, teacher))  # 5 and 7 features, and no projector
    with pytest.raises(CheckError, match=r"MSELoss does not accept student \(8, 5\) and target \(8, 7\)"):
        Distiller(student, wrong, (INPUTS, LABELS))
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    with pytest.raises(RecipeError, match=r"example must be a pair \(inputs, labels\) of a batch; .*; got Tensor$"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), INPUTS)
    with pytest.raises(RecipeError, match="task must be 'multiclass' or 'multilabel' or 'regression'; got 'multi'"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS), task="multi")
    with pytest.raises(RecipeError, match='student must be a Net, Net\\("student", module\\); got a Mlp'):
        Distiller(student.module, Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS))


def test_a_tap_gives_the_feature_of_a_layer_in_any_loop():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with tap(model[1]) as feature, tap(model[2], "input") as same:
        outputs = model(INPUTS)
        assert torch.equal(feature.value, same.value)
        torch.testing.assert_close(model[2](feature.value), outputs)
        feature.value.sum().backward()
    assert model[0].weight.grad is not None
    assert hooks_of(model) == 0


def test_a_tap_whose_tensor_was_changed_or_never_computed_raises():
    model = Mlp()
    with kdkit.tap(model.norm) as feature:
        with pytest.raises(RecipeError, match="never fired"):
            _ = feature.value
        model(INPUTS)
        with pytest.raises(RecipeError, match="BatchNorm1d was changed in place after it was captured"):
            _ = feature.value


def test_labels_in_a_dict_are_refused_with_their_type():
    _teacher, student = networks()
    with pytest.raises(RecipeError, match=r"labels are a tensor, or None .*; got Tensor, dict"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, {"boxes": LABELS}))


def test_a_distiller_without_a_term_on_labels_takes_none():
    teacher, student = networks()
    terms = Match(teacher, SoftTargets()) + Match(teacher, Hint(), **features(student, teacher))
    with Distiller(student, terms, (INPUTS, None)) as distiller, torch.no_grad():
        distiller.eval()
        without = distiller(INPUTS)
        assert torch.equal(distiller(INPUTS, LABELS).loss, without.loss)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), IgnoreUnknown()])
def test_unknown_labels_that_a_binary_loss_would_learn_are_refused(loss):
    labels = torch.eye(3)[LABELS].index_fill(0, torch.tensor([2]), -1)
    student = networks()[1]
    with pytest.raises(CheckError, match=r"example is -1; .*NaN, labels\.masked_fill\(labels == -1, torch\.nan\)"):
        Distiller(student, Truth(loss), (INPUTS, labels), task="multilabel")
    known = labels.masked_fill(labels == -1, torch.nan)
    with Distiller(student, Truth(IgnoreUnknown()), (INPUTS, known), task="multilabel") as distiller:
        assert distiller(INPUTS, known).loss.isfinite()


def test_embeddings_of_any_two_widths_are_compared_if_they_are_declared_as_numbers():
    teacher, student = Net("teacher", nn.Linear(4, 7), trained=True), Net("student", nn.Linear(4, 3))
    with pytest.raises(CheckError, match="if outputs are embeddings instead of classes, pass task='regression'"):
        Distiller(student, Match(teacher, Cosine()), (INPUTS, None))
    with pytest.raises(CheckError, match=r"MSELoss does not accept .*; kdkit\.losses\.Hint\(\) maps features"):
        Distiller(student, Match(teacher, nn.MSELoss()), (INPUTS, None), task="regression")
    with Distiller(student, Match(teacher, Cosine()), (INPUTS, None), task="regression") as distiller:
        (loss,) = distiller.module.losses
        projected, target = loss.projector(student.module(INPUTS)), teacher.module(INPUTS)
        assert distiller(INPUTS).loss.item() == pytest.approx(1 - F.cosine_similarity(projected, target).mean().item())


def test_labels_that_are_missing_or_no_tensor_are_refused():
    teacher, student = networks()
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS)) as distiller:
        with pytest.raises(RecipeError, match="term 'truth' learns from labels, but they are None; call disti"):
            distiller(INPUTS)
        with pytest.raises(RecipeError, match="labels must be a tensor or None; got a list"):
            distiller(INPUTS, LABELS.tolist())
    with pytest.raises(CheckError, match="term 'teacher/dkd': it learns from labels, but the training data has none"):
        Distiller(student, Match(teacher, DKD()), (INPUTS, None))
    assert not hooks_of(student.module)


class Structured(Mlp):
    """A network that returns its logits in a dict, with the loss that it computes from labels among its inputs."""

    def forward(self, inputs, labels):
        logits = super().forward(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits, "features": inputs}


def test_a_network_learns_from_its_own_loss_and_a_teacher_by_its_logits():
    torch.manual_seed(0)
    teacher, student = Net("teacher", Structured(), trained=True), Net("student", Structured())
    own = Truth(model_loss, student=Tap(student.module, element="loss"))
    with Distiller(student, own + Match(teacher, SoftTargets()), ((INPUTS, LABELS), LABELS)) as distiller:
        loss, terms, outputs = distiller.train()((INPUTS, LABELS), LABELS)
        torch.testing.assert_close(terms["truth"], F.cross_entropy(outputs, LABELS))
        loss.backward()
    assert all(parameter.grad is not None for parameter in student.module.parameters())


def test_the_feature_of_a_layer_on_tokens_has_its_channels_second():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with tap(layer) as feature:
        layer(torch.randn(2, 5, 8))
        assert feature.value.shape == (2, 8, 5)
    with tap(layer, channels_last=False) as feature:
        layer(torch.randn(2, 5, 8))
        assert feature.value.shape == (2, 5, 8)


def test_a_tap_whose_channels_are_not_certain_is_warned_of():
    modules = [nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 3)) for _ in range(2)]
    teacher, student = Net("teacher", modules[0], trained=True), Net("student", modules[1])

    def means(student, target):
        return (student.mean() - target.mean()).square()

    match = Match(teacher, means, student=Tap(modules[1][2]), target=Tap(modules[0][0]))
    sequences = INPUTS.unsqueeze(1).expand(-1, 2, -1)
    with (
        pytest.warns(UserWarning, match=r"the tap on Identity '0' of net 'teacher' takes \(8, 2, 4\) as \(batch"),
        Distiller(student, Truth(nn.CrossEntropyLoss()) + match, (sequences, LABELS)),
    ):
        pass


class Noisy(Mlp):
    """A network whose outputs and buffers depend on its mode, with dropout."""

    def __init__(self, hidden=7):
        super().__init__(hidden=hidden)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs):
        return super().forward(self.dropout(inputs))


def noisy_networks():
    torch.manual_seed(0)
    return Net("teacher", Noisy(), trained=True), Net("student", Mlp())


def kd_term(distiller):
    return distiller(INPUTS, LABELS).terms["teacher/soft_targets"]


def test_a_teacher_computes_in_eval_mode_whatever_sets_its_mode():
    teacher, student = noisy_networks()
    before = copy.deepcopy(teacher.module.state_dict())
    with Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS)) as distiller:
        distiller.eval()
        expected = kd_term(distiller)
        parent = nn.ModuleList([teacher.module, distiller])
        parent.train()
        distiller.eval()
        assert torch.equal(kd_term(distiller), expected)
        teacher.module.eval()
        teacher.module.dropout.train()
        assert torch.equal(kd_term(distiller), expected)
    assert all(torch.equal(before[key], value) for key, value in teacher.module.state_dict().items())


def test_a_second_distiller_of_the_same_networks_and_the_first_do_not_disturb_each_other():
    teacher, _ = noisy_networks()
    student = Net("student", Mlp(), recompute=["hidden"])
    objective = Match(teacher, SoftTargets()) + Match(teacher, Hint(), **features(student, teacher))
    open_modes = []

    def cell():
        return Distiller(student, objective, (INPUTS, LABELS)).eval()

    distiller = cell()
    expected = kd_term(distiller)
    for _ in range(
        2
    ):  # as a cell of a notebook that is run again: the new one is created before the old one is deleted
        distiller = cell()
        gc.collect()
        open_modes.append(teacher.module.training)
        assert torch.equal(kd_term(distiller), expected)
        assert hooks_of(student.module) == hooks_of(teacher.module) == 1
        assert "forward" in vars(student.module.hidden)
    second = cell()
    distiller.close()
    distiller.close()
    assert "forward" in vars(student.module.hidden)
    assert not teacher.module.training
    assert torch.equal(kd_term(second), expected)
    second.close()
    assert open_modes == [False, False]
    assert all(module.training for module in teacher.module.modules())
    assert "forward" not in vars(student.module.hidden)


def test_two_distillers_may_teach_each_other_s_students():
    nets = [Net(name, Noisy(), trained=True) for name in ("first", "second")]
    pairs = [
        Distiller(student, Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets()), (INPUTS, LABELS))
        for student, teacher in (nets, reversed(nets))
    ]
    modes = {net.name: [] for net in nets}
    for net in nets:
        net.module.dropout.register_forward_hook(lambda module, *_, net=net: modes[net.name].append(module.training))
    for _ in range(2):
        for distiller in pairs:
            distiller(INPUTS, LABELS).loss.backward()
    assert modes == {"first": [True, False, True, False], "second": [False, True, False, True]}
    for distiller in pairs:
        distiller.close()


def test_a_part_without_parameters_that_a_student_shares_runs_in_eval_mode_in_the_teacher():
    modes = []
    shared = nn.Dropout(0.5)
    shared.register_forward_hook(lambda module, *_: modes.append(module.training))
    teacher = Net("teacher", nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 3)), trained=True)
    student = Net("student", nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 3)))
    with Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS)) as distiller:
        modes.clear()
        for _ in range(2):
            distiller(INPUTS, LABELS)
    assert modes == [False, True, False, True]


def test_statistics_that_a_student_shares_with_a_teacher_are_refused():
    shared = nn.BatchNorm1d(4, affine=False)
    teacher = Net("teacher", nn.Sequential(shared, nn.Linear(4, 3)), trained=True)
    student = Net("student", nn.Sequential(shared, nn.Linear(4, 3)))
    with pytest.raises(CheckError, match="'teacher' teaches, but a student shares buffers with it that change"):
        Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS))


def test_the_student_has_the_mode_of_the_distiller():
    teacher, student = noisy_networks()
    student.module.eval()  # as from_pretrained returns it
    student.module.norm.requires_grad_(False)
    with Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS)) as distiller:
        assert student.module.training
        assert not student.module.norm.training  # a frozen batch norm does not drift, without a call of train()
        student.module.eval()  # to validate it
        distiller(INPUTS, LABELS)
        assert student.module.training
        assert not student.module.norm.training
        distiller.eval()(INPUTS, LABELS)
        assert not student.module.training


@pytest.mark.parametrize(
    "objective",
    [
        lambda teacher: Truth(nn.CrossEntropyLoss()) + LinearRamp() * Match(teacher, SoftTargets()),
        lambda teacher: Match(teacher, TAID()),
    ],
)
def test_a_term_that_changes_during_the_training_needs_the_progress(objective):
    teacher, student = networks()
    with Distiller(student, objective(teacher), (INPUTS, LABELS)) as distiller:
        with pytest.raises(
            RecipeError, match=r"term 'teacher/\w+' changes during training; pass the fraction that .* step"
        ):
            distiller(INPUTS, LABELS)
        with pytest.raises(RecipeError, match="progress must be the fraction of training that is done, from 0 to 1"):
            distiller(INPUTS, LABELS, progress=3)
        expected = distiller(INPUTS, LABELS, progress=0.5).loss
        assert expected.isfinite()
        distiller.eval()(INPUTS, LABELS)  # a validation keeps the progress


def test_an_untrained_teacher_is_refused():
    student = Net("student", Mlp())
    with pytest.raises(CheckError, match=r"net 'teacher' teaches, but it is not trained; pass Net\(\.\.\., weights="):
        Distiller(student, Match(Net("teacher", Mlp()), SoftTargets()), (INPUTS, LABELS))


def test_it_is_created_in_a_context_without_gradients():
    teacher, student = networks()
    with torch.no_grad():
        distiller = Distiller(student, Match(teacher, SoftTargets()), (INPUTS, LABELS))
    assert distiller(INPUTS, LABELS).loss.requires_grad


def test_it_is_converted_if_torch_swaps_tensors():
    teacher, student = networks()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        hint = Match(teacher, Hint(), **features(student, teacher))
        distiller = Distiller(student, hint, (INPUTS, LABELS)).double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert distiller(INPUTS.double(), LABELS).loss.dtype == torch.float64


def test_two_teachers_of_one_name_are_refused():
    teacher, student = networks()
    other = Net("teacher", teacher.module, trained=True)
    objective = Match(teacher, SoftTargets()) + Match(other, Hint(), **features(student, other))
    with pytest.raises(CheckError, match="2 nets are called 'teacher'; give each net a unique name"):
        Distiller(student, objective, (INPUTS, LABELS))


def test_a_teacher_that_follows_another_network_is_refused():
    student, other = Net("student", Mlp()), Net("other", Mlp())
    with pytest.raises(CheckError, match="'peer other' needs a net that this Distiller trains, but it only trains"):
        Distiller(student, Match(Peer(other), SoftTargets()), (INPUTS, LABELS))


def every_kind(student, teacher):
    features_term = Match(teacher, Hint(), **features(student, teacher))
    return (
        Truth(nn.CrossEntropyLoss())
        + Match(teacher, SoftTargets())
        + features_term
        + Match(Ema(student), SoftTargets(), label="ema")
        + Match(Past(student), SoftTargets(), label="past")
    )


def test_a_tap_on_a_module_that_runs_twice_gives_a_notice():
    class Siamese(Mlp):
        def forward(self, inputs):
            return super().forward(inputs) + super().forward(inputs.flip(1))

    teacher, student = Net("teacher", Mlp(hidden=7), trained=True), Net("student", Siamese())
    with pytest.warns(UserWarning, match="of net 'student' runs several times") as caught:
        Distiller(student, Match(teacher, Hint(), **features(student, teacher)), (INPUTS, LABELS)).close()
    assert [warning.filename for warning in caught] == [__file__]  # one, not of the teacher


def test_labels_in_a_column_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"int64 of shape \(samples, 1\); expected .* labels.squeeze\(1\)"):
        Distiller(Net("student", Mlp()), Truth(nn.CrossEntropyLoss()), (INPUTS, LABELS[:, None]))


def test_a_student_that_does_not_take_the_inputs_is_explained_as_in_a_check():
    student = Net("student", Mlp())
    with pytest.raises(
        CheckError,
        match=r"net 'student' fails for its inputs \(image \(8, 4\), id \(8,\)\): TypeError: .*"
        r"unexpected keyword argument 'image'; .* view=Inputs\(only=\('image',\)\)",
    ):
        Distiller(student, Truth(nn.CrossEntropyLoss()), ({"image": INPUTS, "id": LABELS}, LABELS))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("recompute", [(), ("hidden",)])
def test_a_distiller_is_copied_and_pickled_with_its_teachers(duplicate, recompute):
    torch.manual_seed(0)
    teacher, student = Net("teacher", Mlp(hidden=7), trained=True), Net("student", Mlp(), recompute=recompute)
    with Distiller(student, every_kind(student, teacher), (INPUTS, LABELS), samples=8) as distiller:

        def loss(module):
            return module(INPUTS, LABELS, ids=torch.arange(8)).loss

        expected = loss(distiller.eval())
        copied = duplicate(distiller)
        assert torch.equal(loss(copied), expected)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        loss(copied.train()).backward()
        assert all(parameter.grad is None for parameter in distiller.parameters())
        assert hooks_of(copied.student.module) == 1
        copied.close()
        assert hooks_of(copied.student.module) == 0
        assert "forward" not in vars(copied.student.module.hidden)
        assert torch.equal(loss(distiller), expected)


def test_a_loop_that_loads_the_states_of_its_teachers_continues_to_the_same_bits(tmp_path):
    def begin():
        teacher, student = networks()
        distiller = Distiller(student, every_kind(student, teacher), (INPUTS, LABELS), samples=8)
        return distiller, torch.optim.Adam(distiller.parameters())

    def train(distiller, optimizer):
        for _ in range(2):
            distiller(INPUTS, LABELS, ids=torch.arange(8)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            distiller.on_step()
        distiller.on_epoch_end()

    distiller, optimizer = begin()
    train(distiller, optimizer)
    assert distiller.teacher_state_dict().keys() == {"average of student", "past of student"}
    parts = distiller.state_dict(), optimizer.state_dict(), distiller.teacher_state_dict()
    torch.save(parts, tmp_path / "checkpoint.pt")
    again, its_optimizer = begin()
    model, adam, teachers = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(model)
    its_optimizer.load_state_dict(adam)
    again.load_teacher_state_dict(teachers)
    for part in ((distiller, optimizer), (again, its_optimizer)):
        train(*part)
    expected = distiller.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    with pytest.raises(RecipeError, match="change during training, average of student, past of student; got"):
        again.load_teacher_state_dict({})
    distiller.close()
    again.close()


def test_a_student_with_open_taps_is_copied_and_saved(tmp_path):
    teacher, student = networks()
    with Distiller(student, Match(teacher, Hint(), **features(student, teacher)), (INPUTS, LABELS)) as distiller:
        outputs = student.module.eval()(INPUTS)  # with a graph, which taps that are open may hold
        average = torch.optim.swa_utils.AveragedModel(student.module)
        torch.save(student.module, tmp_path / "student.pt")
        expected = distiller(INPUTS, LABELS).loss
        for copied in (average.module, torch.load(tmp_path / "student.pt", weights_only=False)):
            torch.testing.assert_close(copied.eval()(INPUTS), outputs)
        assert torch.equal(distiller(INPUTS, LABELS).loss, expected)


def test_a_validation_is_not_remembered_as_the_past():
    student = Net("student", Mlp())
    with Distiller(student, Match(Past(student), nn.MSELoss(), label="past"), (INPUTS, LABELS), samples=8) as distiller:
        ids = torch.arange(8)
        outputs = distiller(INPUTS, LABELS, ids=ids).outputs.detach()
        distiller.eval()(INPUTS + 10, LABELS, ids=ids)
        distiller.on_epoch_end()
        current = distiller.eval()(INPUTS, LABELS, ids=ids)
        torch.testing.assert_close(current.terms["past"], F.mse_loss(current.outputs, outputs))


@pytest.mark.parametrize("make", [Ema, Past])
def test_averages_and_pasts_have_the_dtype_of_their_distiller(make):
    student = Net("student", Mlp())
    objective = Truth(nn.CrossEntropyLoss()) + Match(make(student), SoftTargets())
    with Distiller(student, objective, (INPUTS, LABELS), samples=8) as distiller:
        distiller.double()
        for _ in range(2):
            assert distiller(INPUTS.double(), LABELS, ids=torch.arange(8)).loss.dtype == torch.float64
            distiller.on_step()
            distiller.on_epoch_end()


def test_a_tap_in_any_loop_may_be_an_attention_tap():
    layer = timm.layers.Attention(8, num_heads=2)
    with tap(AttentionTap(layer)) as feature:
        layer(torch.randn(2, 5, 8))
        assert feature.value.shape == (2, 2, 5, 5)
    assert layer.fused_attn
    with (
        pytest.raises(RecipeError, match=r"kdkit.tap\(AttentionTap\(Attention\)\) takes no other arguments"),
        tap(AttentionTap(layer), "input"),
    ):
        pass
    with pytest.raises(RecipeError, match="not its name"), tap("layer3"):
        pass


def test_two_open_taps_on_the_attention_of_a_layer_are_closed_in_any_order():
    layer = timm.layers.Attention(8, num_heads=2)
    first, second = OpenTaps([AttentionTap(layer)]), OpenTaps([AttentionTap(layer)])
    first.close()
    layer(torch.randn(2, 5, 8))
    assert second.take()[0].shape == (2, 2, 5, 5)
    second.close()
    assert layer.fused_attn


def test_the_error_of_a_missing_projector_explains_how_to_create_it():
    hint, student, target = Hint(), torch.randn(4, 8, 3), torch.randn(4, 16, 3)
    with pytest.raises(RecipeError, match=r"got \(4, 8, 3\) and \(4, 16, 3\): create its projector .* by loss.build"):
        hint(student, target)
    hint.build((student.shape,), (target.shape,))
    assert hint(student, target).isfinite()
