"""A loss of one's own, in the file of the recipe that uses it.

The function is the loss; the hook registers it, and `kdkit list examples/custom_loss.py` lists it. It compares
how sure a student is with how sure its teacher is, and says nothing of what they are sure of.

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


def sureness(student: Tensor, target: Tensor) -> Tensor:
    """Both (batch, classes) logits -> scalar: the squared difference in entropy, mean over the batch, in nats**2."""
    mine, theirs = (torch.special.entr(logits.softmax(1)).sum(1) for logits in (student, target))
    return nn.functional.mse_loss(mine, theirs)


@kdkit.hookimpl
def register_losses(register: kdkit.Register) -> None:
    """Put the loss on the shelf."""
    register("sureness", sureness)


def recipe(weight: float = 0.5, epochs: int = 30) -> Recipe:
    """Return the experiment, in stages by hand.

    weight: of the loss of one's own. epochs: of each stage.
    """
    digits, labels = load_digits(return_X_y=True)
    samples = TensorDataset(torch.tensor(digits, dtype=torch.float32) / 16, torch.tensor(labels))
    split = random_split(samples, (500, 297, 1000), torch.Generator().manual_seed(0))
    teacher = Net("teacher", nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    student = Net("student", nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
    truth = Truth(nn.CrossEntropyLoss())
    objective = 0.3 * truth + 0.7 * Match(teacher, SoftTargets()) + weight * Match(teacher, sureness)
    training = Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3))
    return Recipe(
        data=TorchData(*split, classes=list("0123456789")),
        schedule=[Stage({teacher: truth}, training), Stage({student: objective}, training)],
    )
