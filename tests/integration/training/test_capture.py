"""A training step that is captured as a CUDA graph trains like the eager step, and what cannot be captured is named."""

import copy
import os
import random

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import (
    AverageWeights,
    CosineRamp,
    Ema,
    LRSchedule,
    Match,
    Net,
    Optimizer,
    Past,
    Peer,
    Recipe,
    RecipeError,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    hookimpl,
)
from kdkit.engine.training.capture import CapturedStep
from kdkit.losses import CRD, CTKD, TAID, Hint, SoftTargets
from kdkit.recipe.balancing import PCGrad, UncertaintyWeighting
from tests.helpers.callbacks import KillAtStep, Killed
from tests.integration.package.test_all_losses_example import FOR_DIGITS, all_losses

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
needs_compile = pytest.mark.skipif(
    "emulated_cuda" in os.environ.get("LD_PRELOAD", ""), reason="the emulated device has no torch.compile"
)
ROWS, SIZE, EPOCHS = 52, 8, 4  # seven batches, the last of which has four samples


class Conv(nn.Module):
    """A convolution, batch norm, dropout and a head."""

    def __init__(self, width=8):
        super().__init__()
        # The gradient of a bias before batch norm is a rounding error, which Adam magnifies.
        self.conv = nn.Conv1d(2, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, signal):
        return self.head(self.dropout(self.relu(self.norm(self.conv(signal))).mean(-1)))


def data(rows=ROWS):
    generator = torch.Generator().manual_seed(0)

    def samples(count):
        return TensorDataset(torch.randn(count, 2, 16, generator=generator), torch.arange(count) % 3)

    return TorchData(samples(rows), samples(12), samples(12), classes=["a", "b", "c"])


def nets():
    torch.manual_seed(0)
    return Net("teacher", Conv(16), trained=True), Net("student", Conv(8))


def soft(teacher, weight=0.7):
    return 0.3 * Truth(nn.CrossEntropyLoss()) + weight * Match(teacher, SoftTargets(temperature=2.0))


def plain(**training):
    teacher, student = nets()
    return staged({student: soft(teacher)}, **training)


def staged(objectives, **training):
    training = {"epochs": EPOCHS, "batch_size": SIZE, "keep": "last", **training}
    return Recipe(data=data(), schedule=[Stage(objectives, Training(**training))])


def hint():
    teacher, student = nets()
    tapped = Match(teacher, Hint(), student=Tap(student.module.relu), target=Tap(teacher.module.relu))
    return staged({student: soft(teacher) + 0.5 * tapped})


def memory():
    teacher, student = nets()
    tapped = Match(teacher, CRD(negatives=8), student=Tap(student.module.relu), target=Tap(teacher.module.relu))
    return staged({student: soft(teacher) + 0.5 * tapped})


def interpolated():
    teacher, student = nets()
    return staged({student: soft(teacher) + Match(teacher, TAID(rate=0.1)) + Match(teacher, CTKD())})


def mutual():
    torch.manual_seed(0)
    first, second = Net("first", Conv()), Net("second", Conv())
    return staged({first: soft(Peer(second)), second: soft(Peer(first))})


def mean_teacher():
    _, student = nets()
    return staged({student: soft(Ema(student, decay=0.9))})


def past():
    _, student = nets()
    return staged({student: soft(Past(student))})


def ramp():
    teacher, student = nets()
    return staged({student: soft(teacher, CosineRamp())})


def schedule(make, interval, **options):
    return LRSchedule(make, interval=interval, **options)


CASES = {
    "adam": plain,
    "sgd with momentum": lambda: plain(optimizer=Optimizer(SGD, lr=0.05, momentum=0.9)),
    "an optimizer by timm": lambda: plain(optimizer=Optimizer("lamb", lr=0.01)),
    "a learning rate in a tensor": lambda: plain(
        optimizer=Optimizer(Adam, lr=torch.tensor(0.01), foreach=True, capturable=True),
        lr_schedule=schedule(StepLR, "epoch", step_size=1, gamma=0.3),
    ),
    "adam that is not capturable": lambda: plain(optimizer=Optimizer(Adam, lr=0.01, foreach=True)),
    "a schedule per epoch": lambda: plain(lr_schedule=schedule(CosineAnnealingLR, "epoch")),
    "a schedule per update": lambda: plain(lr_schedule=schedule(CosineAnnealingLR, "update")),
    "a schedule that changes momentum": lambda: plain(lr_schedule=schedule(OneCycleLR, "update", max_lr=0.02)),
    "clipped gradients": lambda: plain(max_grad_norm=0.1),
    "an average of the weights": lambda: plain(ema=AverageWeights(decay=0.9)),
    "uncertainty weighting": lambda: plain(balancing=UncertaintyWeighting()),
    "a ramp": ramp,
    "a projector": hint,
    "a memory bank": memory,
    "an interpolated teacher": interpolated,
    "mutual learning": mutual,
    "mean teacher": mean_teacher,
    "its past": past,
}


@pytest.fixture
def exact(monkeypatch):
    """Choose kernels that compute the same bits each time, and leave TF32 out."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def train(recipe, **options):
    options = {"device": "cuda", "teacher_cache": "off", **options}
    result = kdkit.run(recipe, **options)
    weights = {name: net.network.state_dict() for name, net in result.nets.items() if net.trained}
    terms = [list(epoch["terms"].values()) for epochs in result.history.values() for epoch in epochs]
    return torch.tensor(terms, dtype=torch.float64), copy.deepcopy(weights)


def require_equal(first, second, tolerance=1e-5):
    torch.testing.assert_close(second[0], first[0], rtol=tolerance, atol=tolerance)
    for name, weights in first[1].items():
        for key, value in weights.items():
            close = {"rtol": 10 * tolerance, "atol": 10 * tolerance} if value.is_floating_point() else {}
            torch.testing.assert_close(
                second[1][name][key], value, **close, msg=lambda text, of=f"{name}.{key}": f"{of}: {text}"
            )


@gpu
@needs_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cache", ["off", "cached"])
def test_a_captured_stage_ends_like_an_eager_one(case, cache, exact, tmp_path):
    options = {} if cache == "off" else {"teacher_cache": tmp_path}
    eager = train(CASES[case](), capture="off", **options)
    require_equal(eager, train(CASES[case](), capture="require", **options))


@gpu
@needs_cuda
@pytest.mark.filterwarnings("default")  # torch's compiler warns of TF32, and of what it imports itself
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        pytest.param({"compile": True}, marks=needs_compile),
        {"gradients": 3},
    ],
)
def test_a_captured_stage_ends_like_an_eager_one_with_options(options, exact):
    eager = train(hint(), capture="off", **options)
    require_equal(
        eager, train(hint(), capture="require", **options), tolerance=2e-3 if "precision" in options else 1e-5
    )


@gpu
@needs_cuda
@pytest.mark.parametrize("name", [name for name in FOR_DIGITS if name != "kdsvd"])
def test_every_loss_trains_alike_whether_captured_or_not(name, exact):
    require_equal(train(digits(name), capture="off"), train(digits(name), capture="require"), tolerance=1e-3)


@gpu
@needs_cuda
def test_the_decomposition_of_kdsvd_waits_for_the_device(exact):
    with pytest.raises(RecipeError, match=r"waits for the device in .*singular_vectors\.py"):
        train(digits("kdsvd"), capture="require")


def digits(name):
    """Return a recipe with a loss of examples/all_losses.py on random images."""
    images = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(96) % 10
    data = TorchData(*(TensorDataset(images, labels) for _ in range(3)), classes=list("0123456789"))
    torch.manual_seed(0)
    teacher = all_losses.teacher_net("digits")
    teacher.net.trained = True
    objectives = all_losses.student_objectives(name, "digits", teacher)
    return Recipe(data=data, schedule=[Stage(objectives, Training(epochs=2, batch_size=12, keep="last"))])


@gpu
@needs_cuda
@pytest.mark.parametrize(("interval", "captures"), [("update", 1), ("epoch", 2)])
def test_a_schedule_does_not_capture_the_step_in_every_epoch(interval, captures, monkeypatch):
    graphs = []
    capture = CapturedStep._capture
    monkeypatch.setattr(CapturedStep, "_capture", lambda step, *args: [graphs.append(step), capture(step, *args)])
    train(plain(lr_schedule=schedule(CosineAnnealingLR, interval)), capture="require")
    assert len(graphs) == captures


@gpu
@needs_cuda
def test_a_captured_run_resumes_to_the_same_bits(exact, tmp_path):
    whole = train(plain(), capture="require", out=tmp_path / "whole")
    with pytest.raises(Killed):
        train(plain(), capture="require", out=tmp_path / "part", callbacks=[KillAtStep(2)])
    resumed = train(plain(), capture="require", out=tmp_path / "part", resume=True)
    require_equal(whole, resumed, tolerance=0)


@gpu
@needs_cuda
def test_a_run_that_resumes_at_the_last_and_smaller_batch_of_an_epoch_is_captured(exact, tmp_path):
    options = {"capture": "require", "checkpoint_every": 1}
    whole = train(plain(), **options)
    with pytest.raises(Killed):
        train(plain(), **options, out=tmp_path, callbacks=[KillAtStep(1, 6)])
    require_equal(whole, train(plain(), **options, out=tmp_path, resume=True), tolerance=0)


class Words(nn.Module):
    """A linear layer on counts, dense, sparse or nested."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, counts):
        return self.head(torch.stack([*counts.unbind()]) if counts.is_nested else counts.to_dense())


@gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, torch.nested.as_nested_tensor])
def test_steps_with_sparse_or_nested_inputs_run_eagerly_with_the_reason(convert, exact):
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(6, generator=generator).relu(), index % 3) for index in range(24)]

    def convert_batch(batch):
        counts, labels = zip(*batch, strict=True)
        return convert(torch.stack(counts)), torch.tensor(labels)

    def recipe():
        torch.manual_seed(0)
        loaders = [DataLoader(samples, batch_size=SIZE, collate_fn=convert_batch) for _ in range(3)]
        objectives = {Net("student", Words()): Truth(nn.CrossEntropyLoss())}
        stage = Stage(objectives, Training(epochs=20, keep="last"))
        return Recipe(data=TorchData(*loaders, classes=["a", "b", "c"]), schedule=[stage])

    eager = train(recipe(), capture="off")
    with pytest.warns(UserWarning, match="other values than dense tensors"):
        require_equal(eager, train(recipe()))


class Misbehaved(nn.Module):
    """A loss that breaks a rule of captured steps."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self.calls = 0
        self.on_cpu = torch.zeros(())
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, student, target):
        loss = nn.functional.mse_loss(student, target)
        if self.rule == "waits":
            return loss * min(1.0, loss.item() + 2)
        if self.rule == "counts":
            self.calls += 1
            return loss / self.calls
        if self.rule == "counts on the CPU":
            self.on_cpu += 1
            return loss / self.on_cpu
        if self.rule == "replaces":
            self.centre = 0.9 * self.centre + 0.1 * loss.detach()
            return loss + self.centre
        if self.rule == "draws":
            return loss * random.random()
        if self.rule == "raises" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not during CUDA graph capture")  # as some functions of torch
        return loss


RULES = {
    "waits": "waits for the device in .*test_capture.py",
    "counts": "attribute 'calls' of Misbehaved changes",
    "counts on the CPU": "attribute 'on_cpu' of Misbehaved changes",
    "replaces": "attribute 'centre' of Misbehaved changes",
    "draws": "the random state of Python changes",
    "raises": "RuntimeError: not during CUDA graph capture",
}


@gpu
@needs_cuda
@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_cannot_be_captured_runs_eagerly_with_the_reason(rule, exact):
    def recipe():
        teacher, student = nets()
        objective = soft(teacher) + Match(teacher, Misbehaved(rule), label="misbehaved")
        return staged({student: objective}, epochs=8)  # long enough to be captured by default

    with pytest.raises(RecipeError, match=RULES[rule]):
        train(recipe(), capture="require")
    eager = train(recipe(), capture="off")
    with pytest.warns(UserWarning, match=RULES[rule]):
        captured = train(recipe(), capture="auto")
    require_equal(eager, captured, tolerance=0)


def freeze(network):
    network.conv.requires_grad_(False)


def zero_small_weights(network):
    weight = network.conv.weight
    weight.data = weight.data.where(weight.abs() > 0.1, 0)


CHANGES = {
    "an attribute": lambda network: setattr(network.dropout, "p", 0.8),
    "frozen weights": freeze,
    "weights in other memory": zero_small_weights,
    "a layer": lambda network: setattr(network, "dropout", nn.Identity()),
    "a hook": lambda network: network.relu.register_forward_hook(lambda _layer, _inputs, output: 2 * output),
}


class ChangeAfter:
    """Changes the network of a run at the end of its second epoch, or in the middle of it."""

    def __init__(self, network, change, *, within_epoch=False):
        self.network, self.change, self.within_epoch = network, change, within_epoch

    @hookimpl
    def step_ended(self, event):
        if self.within_epoch and (event.epoch, event.batch) == (1, 2):
            self.change(self.network)

    @hookimpl
    def epoch_ended(self, event):
        if not self.within_epoch and event.epoch == 1:
            self.change(self.network)


@gpu
@needs_cuda
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_epochs_is_captured_again(change, exact):
    def ends(capture):
        recipe = hint()
        (student,) = recipe.stages[0].objectives
        return train(recipe, capture=capture, callbacks=[ChangeAfter(student.module, CHANGES[change])])

    require_equal(ends("off"), ends("require"))


@gpu
@needs_cuda
def test_what_changes_within_an_epoch_is_named():
    recipe = plain()
    (student,) = recipe.stages[0].objectives
    change = ChangeAfter(student.module, CHANGES["an attribute"], within_epoch=True)
    with pytest.raises(RecipeError, match="attribute 'p' of Dropout changed within an epoch"):
        train(recipe, capture="require", callbacks=[change])


@gpu
@needs_cuda
def test_a_learning_rate_that_changes_within_an_epoch_is_used(exact):
    def ends(capture):
        optimizers = []

        def make(parameters):
            optimizers.append(Adam(parameters, lr=0.01, capturable=True))
            return optimizers[-1]

        def halve(_network):
            optimizers[-1].param_groups[0]["lr"] /= 2

        recipe = plain(optimizer=Optimizer(make))
        return train(recipe, capture=capture, callbacks=[ChangeAfter(None, halve, within_epoch=True)])

    require_equal(ends("off"), ends("require"))


@gpu
@needs_cuda
@pytest.mark.parametrize(
    ("training", "reason"),
    [({"accumulate_steps": 2}, "accumulated over 2 batches"), ({"balancing": PCGrad()}, "PCGrad computes on the CPU")],
)
def test_a_stage_that_cannot_be_captured_is_refused_by_name(training, reason):
    with pytest.raises(RecipeError, match=reason):
        train(plain(**training), capture="require")


@gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_device(exact):
    class Watch:
        @hookimpl
        def epoch_ended(self, event):
            torch.cuda.set_sync_debug_mode("default")

        @hookimpl
        def step_ended(self, event):
            if event.epoch == 2:  # samples are on the device, and the step is captured
                torch.cuda.set_sync_debug_mode("error" if event.batch < 5 else "default")

    try:
        train(plain(), capture="require", callbacks=[Watch()])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_cuda
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_samples_that_are_kept_on_the_device_train_alike(share, exact):
    require_equal(train(plain(), device_data=0.0), train(plain(), device_data=share), tolerance=0)


def test_a_required_capture_is_refused_on_a_cpu():
    with pytest.raises(RecipeError, match="cannot be captured as a CUDA graph: the device is 'cpu'"):
        kdkit.run(plain(), device="cpu", capture="require")


def test_an_unknown_capture_option_is_refused():
    with pytest.raises(RecipeError, match="capture must be 'auto' or 'off' or 'require'; got 'always'"):
        kdkit.run(plain(), device="cpu", capture="always")
