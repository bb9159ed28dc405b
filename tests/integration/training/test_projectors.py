"""Projectors between layers in whole runs: built, trained, checkpointed, resumed, and not saved with the student."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import AverageWeights, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError
from kdkit.losses import HCL, Hint, PatientKD
from tests.helpers.callbacks import KillAtStep, killed_and_resumed
from tests.helpers.stages import assert_same_results


class Waves(nn.Module):
    """A network of two convolutions over a signal of two leads, (batch, 2, time) -> (batch, 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv1d(2, width, 3, padding=1), nn.BatchNorm1d(width)
        self.second, self.second_norm = nn.Conv1d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm1d(2 * width)
        self.pool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(2 * width, 3)

    def forward(self, signal):
        signal = self.first_norm(self.first(signal)).relu()
        signal = self.second_norm(self.second(signal)).relu()
        return self.head(self.pool(signal).flatten(1))


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 2, 16, generator=generator), torch.arange(count) % 3)


# Each kind of projector, with the layer that the loss compares. All losses are resumed in test_all_losses_example.py.
PROJECTORS = {
    "conv": ({"kind": "conv"}, "second_norm"),
    "bottleneck": ({"kind": "bottleneck"}, "second_norm"),
    "mlp": ({"kind": "mlp"}, "pool"),
    "orthogonal": ({"kind": "orthogonal", "normalise": "layer_norm", "error": "smooth_l1"}, "second_norm"),
    "whitened": ({"kind": "orthogonal", "normalise": "whiten"}, "second_norm"),
}


def recipe(loss, *layers, student_width=2, **training):
    teacher, student = Net("teacher", Waves(3), trained=True), Net("student", Waves(student_width))
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, loss, **taps(student, teacher, *layers))
    data = TorchData(samples(20, 0), samples(6, 1), samples(6, 2), classes=("a", "b", "c"))
    stage = Stage({student: objective}, Training(**{"epochs": 3, "batch_size": 8, **training}))
    return Recipe(data=data, schedule=[stage])


def taps(student, teacher, *layers):
    """Return taps on one layer of both nets, or tuples of taps on several."""
    sides = {"student": student.module, "target": teacher.module}
    several = {side: tuple(Tap(getattr(module, layer)) for layer in layers) for side, module in sides.items()}
    return several if len(layers) > 1 else {side: tap for side, (tap,) in several.items()}


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_run_with_a_projector_resumes_to_the_same_bits(kind, tmp_path):
    options, layer = PROJECTORS[kind]
    resumed = killed_and_resumed(lambda: recipe(Hint(**options), layer), tmp_path / "run", KillAtStep(2), device="cpu")
    assert_same_results(resumed, kdkit.run(lambda: recipe(Hint(**options), layer), device="cpu"))
    # The weights of the projector are in the checkpoint, but not in the file of the student.
    (saved,) = tmp_path.glob("run/*/weights.safetensors")
    assert load_file(saved).keys() == Waves(2).state_dict().keys()


def test_an_orthogonal_projector_is_trained_next_to_averaged_weights(tmp_path):
    def function():
        return recipe(Hint(kind="orthogonal"), "second_norm", ema=AverageWeights(decay=0.5))

    resumed = killed_and_resumed(function, tmp_path / "run", KillAtStep(2), device="cpu")
    assert_same_results(resumed, kdkit.run(function, device="cpu"))


@pytest.mark.parametrize("loss", [PatientKD(), HCL()])
def test_losses_without_a_projector_compare_layers_of_one_shape(loss):
    layers = ("first_norm", "second_norm")
    # The teacher has a width of 3.
    assert kdkit.run(recipe(loss, *layers, student_width=3, epochs=1), device="cpu").history["student"]
    with pytest.raises(CheckError, match="compares features of one shape"):
        kdkit.run(recipe(loss, *layers, epochs=1), device="cpu")
