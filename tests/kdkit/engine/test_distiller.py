"""A Distiller in a bare loop computes what hand-written hooks and losses do, and holds no teacher."""

import copy
import gc
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

import kdkit
from kdkit import Distiller, Ema, LinearRamp, Match, Net, RecipeError, Tap, Truth, model_loss, tap
from kdkit.errors import CheckError
from kdkit.losses import CRD, Hint, SoftTargets
from tests.helpers.command_line import environment
from tests.helpers.tiny import Mlp, hooks_of

INPUTS, LABELS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def networks(hidden=7):
    torch.manual_seed(0)
    return Net("teacher", Mlp(hidden=hidden), trained=True), Net("student", Mlp(hidden=5))


def features(student, teacher):
    return {"student": Tap(student.module.norm), "target": Tap(teacher.module.norm)}


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


def test_a_loss_with_a_memory_gets_the_ids_of_the_samples():
    teacher, student = networks()
    crd = Match(teacher, CRD(negatives=4, width=8), **features(student, teacher))
    with Distiller(student, Truth(nn.CrossEntropyLoss()) + crd, (INPUTS, LABELS), samples=8) as distiller:
        assert distiller(INPUTS, LABELS, ids=torch.arange(8)).loss.isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_moving_it_moves_the_teachers_too():
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


def test_problems_are_found_when_it_is_created_and_leave_no_hook():
    teacher, student = networks()
    wrong = Match(teacher, nn.MSELoss(), **features(student, teacher))  # 5 and 7 features, and no projector
    with pytest.raises(CheckError, match=r"MSELoss does not accept student \(8, 5\) and target \(8, 7\)"):
        Distiller(student, wrong, (INPUTS, LABELS))
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    with pytest.raises(RecipeError, match=r"example is a pair \(inputs, labels\) of a batch, .*; got Tensor(;|$)"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), INPUTS)
    with pytest.raises(RecipeError, match='student is a Net, such as Net\\("student", module\\); got a Mlp'):
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
    with pytest.raises(RecipeError, match="with a tensor of labels; got Tensor, dict"):
        Distiller(student, Truth(nn.CrossEntropyLoss()), (INPUTS, {"boxes": LABELS}))


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
