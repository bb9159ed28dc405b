"""Knowledge distillation (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531).

A wide network learns handwritten digits from their labels. A narrow network then learns from the labels and from the
outputs of the wide one. This is the shortest complete recipe, and the place to start.

    kdkit run examples/hinton.py
    kdkit run examples/hinton.py --label-weight 1    (no distillation; as good on data this easy)
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import CrossEntropyLoss, Dropout, Linear, ReLU, Sequential
from torch.optim import Adam
from torch.utils.data import TensorDataset, random_split

from kdkit import Net, Optimizer, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def recipe(temperature: float = 4.0, label_weight: float = 0.3, epochs: int = 30) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    temperature: divides the logits of teacher and student; higher values soften the targets.
    label_weight: weight of the labels; the teacher gets the rest.
    epochs: number of epochs, the same for teacher and student.
    """
    teacher = Net("teacher", mlp(512, dropout=0.5))
    student = Net("student", mlp(16))
    return Recipe(
        data=digits(),
        # First the teacher is trained on the labels alone, then the student on both.
        schedule=Parallel(
            teacher,
            student,
            truth=Truth(CrossEntropyLoss()),
            kd_loss=SoftTargets(temperature=temperature),
            label_weight=label_weight,
            training=Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3)),
        ),
    )


def mlp(width: int, dropout: float = 0.0) -> Sequential:
    """Return a network with one hidden layer: (batch, 64) pixels -> (batch, 10) logits."""
    return Sequential(Linear(64, width), ReLU(), Dropout(dropout), Linear(width, 10))


def digits() -> TorchData:
    """Return 500 digits for training, 297 for validation (to choose the best epoch), and 1000 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    samples = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))  # pixels are 0 to 16
    splits = random_split(samples, (500, 297, 1000), torch.Generator().manual_seed(0))
    return TorchData(*splits, classes=list("0123456789"))
