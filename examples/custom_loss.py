"""A user-defined loss, in the recipe file that uses it.

The loss is a plain function. The hook registers it under a name, and `kdkit list examples/custom_loss.py` lists it. It
compares how uncertain the student and the teacher are, whatever class they predict.

    kdkit run examples/custom_loss.py
    kdkit run examples/custom_loss.py --weight 0
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import TensorDataset, random_split

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def entropy_gap(student: Tensor, target: Tensor) -> Tensor:
    """Both (batch, classes) logits -> scalar: the squared difference in entropy, mean over the batch, in nats**2."""
    # (batch,) each
    entropy, target_entropy = (torch.special.entr(logits.softmax(1)).sum(1) for logits in (student, target))
    return nn.functional.mse_loss(entropy, target_entropy)


@kdkit.hookimpl
def register_losses(register: kdkit.Register) -> None:
    """Register the loss."""
    register("entropy_gap", entropy_gap)


def recipe(weight: float = 0.5, epochs: int = 30) -> Recipe:
    """Return the experiment, with its stages written out instead of a ready-made schedule.

    weight: weight of the user-defined loss.
    epochs: number of epochs of each stage.
    """
    digits, labels = load_digits(return_X_y=True)
    samples = TensorDataset(torch.tensor(digits, dtype=torch.float32) / 16, torch.tensor(labels))
    splits = random_split(samples, (500, 297, 1000), torch.Generator().manual_seed(0))
    teacher = Net("teacher", nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    student = Net("student", nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
    truth = Truth(nn.CrossEntropyLoss())
    objective = 0.3 * truth + 0.7 * Match(teacher, SoftTargets()) + weight * Match(teacher, entropy_gap)
    training = Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3))
    return Recipe(
        data=TorchData(*splits, classes=list("0123456789")),
        schedule=[Stage({teacher: truth}, training), Stage({student: objective}, training)],
    )
