"""Networks that are unlike the usual ones are tapped and distilled, each in a whole run of a few tiny steps."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import kdkit
from kdkit import Match, Net, Recipe, RecipeError, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError
from kdkit.losses import HCL, Hint
from kdkit.nets.taps import OpenTaps
from tests.helpers.datasets import Rows
from tests.helpers.distilled import CLASSES, ROWS, Conv1d, Conv2d, cross_entropy, distilled, labels, soft

# Inputs of a network


class Pair(nn.Module):
    """A network of two inputs, a signal and an age."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.signal = nn.Conv1d(2, width, 3)
        self.age = nn.Linear(1, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor, age: Tensor) -> Tensor:
        return self.head(self.signal(signal).mean(-1) + self.age(age))


class SignalAndAge(NamedTuple):
    signal: Tensor
    age: Tensor


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda signal, age: (signal, age),
    "list": lambda signal, age: [signal, age],
    "named tuple": SignalAndAge,
    # In another order than the parameters of forward: a dict is passed by its keys.
    "dict": lambda signal, age: {"age": age, "signal": signal},
}


@pytest.mark.parametrize("loaded", [False, True], ids=["dataset", "loader"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_network_of_two_inputs_gets_both(structure, loaded):
    samples = [(STRUCTURES[structure](torch.randn(2, 8), torch.rand(1)), int(label)) for label in labels()]
    rows = Rows(samples)
    split: Any = DataLoader(rows, batch_size=5) if loaded else rows
    data = TorchData(split, split, classes=[str(label) for label in range(CLASSES)])
    teacher, student = Net("teacher", Pair(6), trained=True), Net("student", Pair(3))
    hint = Match(teacher, Hint(), student=Tap(student.module.signal), target=Tap(teacher.module.signal))
    ages = Match(teacher, Hint(), student=Tap(student.module.age), target=Tap(teacher.module.age), label="age")
    before = student.module.age.weight.clone()
    # The weight of 0 keeps the second hint from the weights: they change through the labels, if the age is an input.
    distilled(student, Truth(cross_entropy) + Match(teacher, soft) + hint + 0.0 * ages, data)
    assert not torch.equal(student.module.age.weight, before)


# Teachers that are no modules


def test_a_plain_callable_teaches_by_its_output(signals):
    calls = []

    def api(signal: Tensor) -> Tensor:
        calls.append(len(signal))
        return signal.mean(-1) @ torch.tensor([[3.0, 0.0, -3.0], [0.0, 3.0, -3.0]])

    student = Net("student", Conv1d(2))
    distilled(student, Truth(cross_entropy) + Match(Net("api", api, version="2024-05"), soft), signals)
    assert sum(calls) >= ROWS


def test_a_plain_callable_needs_a_version():
    with pytest.raises(RecipeError, match=r"give it a version .*: Net\('api', function, version='1'\)"):
        Net("api", lambda signal: signal)


def test_a_plain_callable_can_be_neither_tapped_nor_trained(signals):
    api = Net("api", lambda signal: signal.mean(-1), version="1")
    student = Net("student", Conv1d(2))
    tap = Tap(Conv1d(2).conv)  # of any module: a callable has none
    with pytest.raises(CheckError, match="'api' is a plain callable, which cannot be tapped"):
        distilled(student, 1.0 * Match(api, Hint(), student=Tap(student.module.conv), target=tap), signals)
    stage = Stage({api: Truth(cross_entropy)}, Training(epochs=1))
    with pytest.raises(CheckError, match="can teach, but not be trained"):
        kdkit.run(Recipe(data=signals, schedule=[stage]), device="cpu")
    with pytest.raises(RecipeError, match="it can teach, but not be trained or tapped"):
        _ = api.network


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_teacher_comes_with_its_weights_from_a_file(ending, signals, tmp_path):
    original = Conv1d(2)
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(original.state_dict(), path)
    else:
        torch.save(original.state_dict(), path)
    teacher = Net("teacher", Conv1d(2), weights=path)
    assert not torch.equal(Conv1d(2).conv.weight, original.conv.weight)  # initial weights differ, so that loading shows
    torch.testing.assert_close(teacher.module.state_dict(), original.state_dict(), rtol=0, atol=0)
    distilled(Net("student", Conv1d(2, width=2)), Truth(cross_entropy) + Match(teacher, soft), signals)


# Modules that run several times, sometimes, or frozen


def test_a_network_on_signals_is_tapped_in_one_dimension(signals):
    teacher, student = Net("teacher", Conv1d(2, width=6), trained=True), Net("student", Conv1d(2))
    taps = {"student": Tap(student.module.activation, "input"), "target": Tap(teacher.module.activation, "input")}
    distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


class Twice(nn.Module):
    """A network that runs one block twice, with an activation after each run."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv1d(2, 2, 3, padding=1)
        self.activation = nn.Tanh()
        self.head = nn.Linear(2, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        for _ in range(2):
            signal = self.activation(self.block(signal))
        return self.head(signal.mean(-1))


def test_a_tap_captures_the_last_run_of_a_module_that_runs_twice(signals):
    module = Twice()
    signal = torch.randn(2, 2, 16)
    with torch.no_grad(), OpenTaps([Tap(module.block), Tap(module.block, "input")]) as open_taps:
        module(signal)
        output, block_input = open_taps.take()
        first = module.activation(module.block(signal))
        torch.testing.assert_close(block_input, first)
        torch.testing.assert_close(output, module.block(first))
    teacher, student = Net("teacher", Twice(), trained=True), Net("student", Twice())
    match = Match(teacher, Hint(), student=Tap(student.module.block), target=Tap(teacher.module.block))
    distilled(student, Truth(cross_entropy) + match, signals)
    runs = {
        side: tuple(Tap(net.module.block, call=call) for call in (0, 1))
        for side, net in (("student", student), ("target", teacher))
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, HCL(), **runs), signals)


class Skipping(nn.Module):
    """A network that skips a layer after a number of runs, as stochastic depth does at random."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, CLASSES)
        self.runs = runs

    def forward(self, signal: Tensor) -> Tensor:
        self.runs -= 1
        return self.head((self.conv(signal) if self.runs >= 0 else signal).mean(-1))


def test_a_tap_that_stops_firing_during_a_run_is_named(signals):
    teacher, student = Net("teacher", Conv1d(2, width=2), trained=True), Net("student", Skipping(10))
    match = Match(teacher, Hint(), student=Tap(student.module.conv), target=Tap(teacher.module.conv))
    with pytest.raises(RecipeError, match="the tap on Conv1d 'conv' of net 'student' never fired"):
        distilled(student, Truth(cross_entropy) + match, signals, epochs=9)


def test_a_frozen_backbone_does_not_change_while_its_head_learns(images):
    module = timm.create_model("test_convnext", num_classes=CLASSES)
    module.requires_grad_(requires_grad=False)
    module.get_classifier().requires_grad_()
    before = copy.deepcopy(module.state_dict())
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", module)
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_a_hint_on_a_frozen_layer_is_refused(signals):
    teacher, student = Net("teacher", Conv1d(2), trained=True), Net("student", Conv1d(2))
    student.module.conv.requires_grad_(requires_grad=False)
    taps = {"student": Tap(student.module.conv), "target": Tap(teacher.module.conv)}
    with pytest.raises(CheckError, match="Hint has no effect: the tensors of net 'student' have no gradient"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


def test_a_network_without_trainable_parameters_is_refused(signals):
    student = Net("student", Conv1d(2))
    student.module.requires_grad_(requires_grad=False)
    with pytest.raises(CheckError, match="none of its parameters requires a gradient"):
        distilled(student, Truth(cross_entropy), signals)


@pytest.mark.parametrize("layer", ["norm", "conv"])
def test_a_feature_before_an_in_place_relu_is_the_output_of_its_layer(layer, images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", Conv2d())
    features = []

    def distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        features.append((student_feature, teacher_feature))
        return (student_feature - teacher_feature).square().mean()

    match = Match(
        teacher, distance, student=Tap(getattr(student.module, layer)), target=Tap(getattr(teacher.module, layer))
    )
    distilled(student, Truth(cross_entropy) + match, images)
    steps = features[-math.ceil(ROWS / 4) :]  # those of training, after those of the check
    assert all((feature < 0).any() for step in steps for feature in step)  # a ReLU would have left none below 0
