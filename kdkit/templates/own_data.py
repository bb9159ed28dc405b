"""A template for your own data and networks, which runs as it is.

Replace the functions `read_samples`, `make_teacher` and `make_student` with yours. Until then, the data is synthetic:
the class of a sample is the largest of its first four numbers.

    kdkit run examples/own_data.py
    kdkit run examples/own_data.py --data FOLDER --teacher-weights teacher.safetensors
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import CrossEntropyLoss, Linear, Module, ReLU, Sequential
from torch.optim import Adam
from torch.utils.data import Dataset, TensorDataset

from kdkit import Net, Optimizer, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def recipe(
    data: Path | None = None,
    teacher_weights: Path | None = None,
    temperature: float = 4.0,
    label_weight: float = 0.5,
    epochs: int = 20,
) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    data: folder of train.npz, validation.npz and test.npz, with arrays "inputs" and "labels"; synthetic by default.
    teacher_weights: file with the weights of the teacher; without it, the teacher is trained first.
    temperature: divides the logits of teacher and student; higher values soften the targets.
    label_weight: weight of the labels; the teacher gets the rest.
    epochs: number of epochs of each stage.
    """
    splits = [read_samples(data, name) for name in ("train", "validation", "test")]
    return Recipe(
        data=TorchData(*splits, classes=("first", "second", "third", "fourth")),
        schedule=Parallel(
            Net("teacher", make_teacher(), weights=teacher_weights),
            Net("student", make_student()),
            truth=Truth(CrossEntropyLoss()),
            kd_loss=SoftTargets(temperature=temperature),
            label_weight=label_weight,
            training=Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3)),
        ),
    )


def read_samples(folder: Path | None, split: str) -> Dataset[tuple[torch.Tensor, ...]]:
    """Return a split as a torch Dataset of (inputs, labels): here (20,) numbers, and a class index."""
    if folder is not None:
        arrays = np.load(folder / f"{split}.npz")
        return TensorDataset(torch.tensor(arrays["inputs"]).float(), torch.tensor(arrays["labels"]).long())
    counts = {"train": 400, "validation": 300, "test": 1000}
    generator = torch.Generator().manual_seed(list(counts).index(split))
    inputs = torch.randn(counts[split], 20, generator=generator)
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


def make_teacher() -> Module:
    """Return the large network: (batch, 20) inputs -> (batch, 4) logits, one for each class."""
    return Sequential(Linear(20, 512), ReLU(), Linear(512, 4))


def make_student() -> Module:
    """Return the small network, with inputs and outputs of the same shapes."""
    return Sequential(Linear(20, 16), ReLU(), Linear(16, 4))
