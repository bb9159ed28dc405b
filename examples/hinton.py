"""Plain knowledge distillation (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").

A wide network learns handwritten digits from their labels; a narrow one learns them from the labels and from what the
wide one thinks of every digit. This is the shortest complete recipe: read it first.

    kdkit run examples/hinton.py
    kdkit run examples/hinton.py --balance 1    (labels alone, which do as well on data this easy)
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import CrossEntropyLoss, Dropout, Linear, ReLU, Sequential
from torch.optim import Adam
from torch.utils.data import TensorDataset, random_split

from kdkit import Net, Optimizer, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def mlp(width: int, dropout: float = 0.0) -> Sequential:
    """Return a network of one hidden layer: 64 pixels -> 10 digits."""
    return Sequential(Linear(64, width), ReLU(), Dropout(dropout), Linear(width, 10))


def recipe(temperature: float = 4.0, label_weight: float = 0.3, epochs: int = 30) -> Recipe:
    """Return the experiment: 500 digits to learn from, 297 to choose the epoch on, 1000 to report on.

    temperature: how soft the teacher's answers are made. balance: the share of the labels. epochs: of each stage.
    """
    digits, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(digits, dtype=torch.float32) / 16
    split = random_split(
        TensorDataset(pixels, torch.tensor(labels)), (500, 297, 1000), torch.Generator().manual_seed(0)
    )
    return Recipe(
        data=TorchData(*split, classes=list("0123456789")),
        schedule=Parallel(
            Net("teacher", mlp(512, dropout=0.5)),
            Net("student", mlp(16)),
            truth=Truth(CrossEntropyLoss()),
            kd_loss=SoftTargets(temperature=temperature),
            label_weight=label_weight,
            training=Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3)),
        ),
    )
