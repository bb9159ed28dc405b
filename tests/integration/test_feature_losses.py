"""Losses between layers in whole runs: built, trained, checkpointed, resumed, and not saved with the student."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import AverageWeights, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import (
    CRD,
    CWD,
    HCL,
    MGD,
    NST,
    OFD,
    PKD,
    SRD,
    SRRL,
    VID,
    WKDF,
    AttentionTransfer,
    DISTPlus,
    Hint,
    MiniLM,
    PairwiseAffinity,
    PatientKD,
    QueueKL,
    ReviewKD,
    SemCKD,
    SquareHead,
)
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


def taps(net, *names):
    layers = tuple(Tap(getattr(net.module, name)) for name in names)
    return layers if len(layers) > 1 else layers[0]  # a loss of one layer takes a tensor, not a tuple of one


LAST, BOTH = ("second_norm",), ("first_norm", "second_norm")

# A function that makes the loss from the teacher, and the layers that the loss compares.
LOSSES = {
    "hint": (lambda teacher: Hint(kind="conv"), LAST),
    "simkd": (lambda teacher: Hint(kind="bottleneck"), LAST),
    "mlp": (lambda teacher: Hint(kind="mlp"), ("pool",)),
    "vkd": (lambda teacher: Hint(kind="orthogonal", normalise="layer_norm", error="smooth_l1"), LAST),
    "whitened": (lambda teacher: Hint(kind="orthogonal", normalise="whiten"), LAST),
    "srd": (lambda teacher: SRD(), ("pool",)),
    "dist_plus": (lambda teacher: DISTPlus(), LAST),
    "queue_kl": (lambda teacher: QueueKL(size=12), LAST),
    "wkdf": (lambda teacher: WKDF(kind="orthogonal"), LAST),
    "square_head": (lambda teacher: SquareHead(), LAST),
    "attention_transfer": (lambda teacher: AttentionTransfer(), LAST),
    "cwd": (lambda teacher: CWD(), LAST),
    "nst": (lambda teacher: NST(), LAST),
    "pairwise_affinity": (lambda teacher: PairwiseAffinity(), LAST),
    "mini_lm": (lambda teacher: MiniLM(), LAST),
    "pkd": (lambda teacher: PKD(), LAST),
    "vid": (lambda teacher: VID(), LAST),
    "mgd": (lambda teacher: MGD(), LAST),
    "ofd": (lambda teacher: OFD(teacher.module.second_norm), LAST),
    "review_kd": (lambda teacher: ReviewKD(), BOTH),
    "sem_ckd": (lambda teacher: SemCKD(batch_size=8, width=4), BOTH),
    "srrl": (lambda teacher: SRRL(), ("pool",)),
    "crd": (lambda teacher: CRD(width=4, negatives=8), ("pool",)),
}
# Losses without a projector: both nets have layers of the same shape.
UNPROJECTED = {"patient_kd": (lambda teacher: PatientKD(), BOTH), "hcl": (lambda teacher: HCL(), BOTH)}


def recipe(name, epochs=3, student_width=2, **training):
    torch.manual_seed(0)
    make, layers = (LOSSES | UNPROJECTED)[name]
    teacher, student = Net("teacher", Waves(3), trained=True), Net("student", Waves(student_width))
    matched = Match(teacher, make(teacher), student=taps(student, *layers), target=taps(teacher, *layers))
    objective = Truth(nn.CrossEntropyLoss()) + matched
    data = TorchData(samples(20, 0), samples(6, 1), samples(6, 2), classes=("a", "b", "c"))
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=epochs, batch_size=8, **training))])


# Each loss takes three runs, and is resumed in test_all_losses_example.py too: the suite has time for every third one.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (index % 3 > 0)) for index, name in enumerate(LOSSES)]
)
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path):
    resumed = killed_and_resumed(lambda: recipe(name), tmp_path / "run", KillAtStep(2), device="cpu")
    assert_same_results(resumed, kdkit.run(lambda: recipe(name), device="cpu"))
    # The weights of the projector are in the checkpoint, but not in the file of the student.
    (saved,) = tmp_path.glob("run/*/weights.safetensors")
    assert load_file(saved).keys() == Waves(2).state_dict().keys()


def test_an_orthogonal_projector_is_trained_next_to_averaged_weights(tmp_path):
    def function():
        return recipe("vkd", ema=AverageWeights(decay=0.5))

    resumed = killed_and_resumed(function, tmp_path / "run", KillAtStep(2), device="cpu")
    assert_same_results(resumed, kdkit.run(function, device="cpu"))


@pytest.mark.parametrize("name", UNPROJECTED)
def test_layers_of_one_shape_are_compared_in_pairs(name):
    # A width of 3, as the teacher has.
    history = kdkit.run(lambda: recipe(name, epochs=1, student_width=3), device="cpu").history
    assert history["student"]


@pytest.mark.parametrize("name", UNPROJECTED)
def test_layers_of_different_shapes_are_refused_before_the_first_step(name):
    with pytest.raises(kdkit.errors.CheckError, match="compares features of one shape"):
        kdkit.run(lambda: recipe(name, epochs=1), device="cpu")
