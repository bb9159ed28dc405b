"""Folders of images, such as ImageNet, and two timm networks.

The Dataset crops, augments and yields uint8 images; the view of each network normalises them. Each image has several
augmented versions, and the teacher computes its outputs once for each. Without a folder, the images are synthetic: a
shape on noise. A run takes about a minute.

    kdkit run examples/images.py
    kdkit run examples/images.py --folder FOLDER --teacher resnet50 --student resnet18 --size 224 --workers 8
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.optim import AdamW
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import kdkit
from kdkit import Images, Match, Net, Optimizer, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.metrics import Accuracy, MacroF1

SHAPES = ("disc", "square", "cross", "ring")


def recipe(
    folder: Path | None = None,
    teacher: str = "test_resnet",
    student: str = "test_efficientnet",
    teacher_weights: Path | None = None,
    size: int = 48,
    versions: int = 4,
    epochs: int = 12,
    images: int = 512,
    workers: int = 0,
) -> kdkit.Recipe:
    """Return the experiment.

    folder: contains train, validation and test, each with a folder of images for each class; synthetic by default.
    teacher: name of the teacher in timm.
    student: name of the student in timm.
    teacher_weights: file with the weights of the teacher; without it, the teacher is trained first.
    size: pixels of the side of an image.
    versions: augmented versions of an image.
    epochs: number of epochs of each stage.
    images: number of synthetic training images.
    workers: processes that read the images.
    """
    splits = [read_images(folder, name, size, images) for name in ("train", "validation", "test")]
    data = TorchData(*splits, draws=versions)
    if folder is not None:
        data.train_digest = f"{folder}, crops of {size}"  # change it with the images, and runs share the outputs
    large, small = (timm.create_model(name, num_classes=len(data.classes)) for name in (teacher, student))
    teacher_net = Net("teacher", large, view=Images.from_timm(large), weights=teacher_weights)
    student_net = Net("student", small, view=Images.from_timm(small))
    truth = Truth(nn.CrossEntropyLoss(label_smoothing=0.1))
    training = Training(
        epochs=epochs,
        workers=workers,
        optimizer=Optimizer(AdamW, lr=3e-3, weight_decay=0.05, groups=without_decay_of_vectors),
        lr_schedule=kdkit.LRSchedule("cosine", warmup_epochs=1, interval="update"),
        max_grad_norm=1.0,
    )
    stages = [] if teacher_net.trained else [Stage({teacher_net: truth}, training)]
    return kdkit.Recipe(
        data=data,
        schedule=[*stages, Stage({student_net: 0.1 * truth + 0.9 * Match(teacher_net, SoftTargets())}, training)],
        metrics=(Accuracy(), MacroF1()),
    )


def read_images(folder: Path | None, split: str, size: int, count: int) -> Dataset[tuple[torch.Tensor, int]]:
    """Return a split that yields images (3, size, size) of uint8, and class indices."""
    crop: list[nn.Module] = [v2.Resize(size), v2.CenterCrop(size)]
    if split == "train":
        crop = [v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)]
    transform = v2.Compose([v2.ToImage(), *crop])
    if folder is not None:
        dataset: Dataset[tuple[torch.Tensor, int]] = ImageFolder(folder / split, transform)
        return dataset
    return MadeUp(count if split == "train" else 256, seed=len(split), transform=transform)


class MadeUp(Dataset[tuple[torch.Tensor, int]]):
    """Images of a shape on noise, 64 x 64."""

    classes = SHAPES

    def __init__(self, count: int, *, seed: int, transform: Callable[[Image.Image], Any]) -> None:
        random = np.random.default_rng(seed)
        self.targets = (np.arange(count) % len(SHAPES)).tolist()
        self.images = [draw(random, target) for target in self.targets]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[row]), self.targets[row]


def draw(random: np.random.Generator, target: int) -> Image.Image:
    """Return an image of the shape with this number."""
    rows, columns = np.mgrid[:64, :64]
    radius, (y, x) = random.uniform(10, 18), random.uniform(24, 40, 2)
    down, across = abs(rows - y), abs(columns - x)
    distance, largest = np.hypot(down, across), np.maximum(down, across)
    masks = (
        distance < radius,
        largest < radius,
        (largest < radius) & (np.minimum(down, across) < radius / 3),
        (distance < radius) & (distance > 0.6 * radius),
    )
    pixels = random.normal(110, 25, (64, 64, 3))
    pixels[masks[target]] += random.uniform(40, 100, 3) * random.choice([-1, 1], 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def without_decay_of_vectors(named: Any) -> list[dict[str, Any]]:
    """Return the groups of the optimizer: norms and biases have no weight decay."""
    parameters = [parameter for _, parameter in named]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
