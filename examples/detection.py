"""Object detection: a network that returns a dict of tensors learns classes and boxes from labels and from a teacher.

Each cell of an 8 x 8 grid predicts the class and the box of the object whose centre lies in it, without anchors (after
CenterNet, Zhou et al. 2019, arXiv:1904.07850). The network returns {"logits": ..., "boxes": ...}. A tap takes each by
its key, so each has its own terms, and `element=pack` packs both into one tensor, in the form of the labels, for the
metric. The scenes are synthetic. A run takes about 15 seconds.

    kdkit run examples/detection.py
    kdkit run examples/detection.py --teach-weight 0
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.utils.data import TensorDataset

from kdkit import Match, Net, Objective, Optimizer, Predictions, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.metrics import MetricResult

SIDE, GRID = 32, 8  # pixels of an image, and cells, along an edge
CLASSES = ("square", "disc", "cross")
COUNT = len(CLASSES)
CHANNELS = COUNT + 4  # per cell: a score for each class, the centre (x, y) in the cell, width and height of the box


def scenes(count: int, seed: int) -> TensorDataset:
    """Return images, (count, 3, SIDE, SIDE), with one to three shapes each, and packed labels (see `unpack`)."""
    random = np.random.default_rng(seed)
    images = random.normal(0.0, 0.3, (count, 3, SIDE, SIDE))
    labels = np.zeros((count, CHANNELS, GRID, GRID))
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for image, label in zip(images, labels, strict=True):
        for _ in range(random.integers(1, 4)):
            x, y = random.uniform(4, SIDE - 4, 2)
            width, height = random.uniform(6, 14, 2)
            kind = random.integers(COUNT)
            across, down = abs(columns - x) / width * 2, abs(rows - y) / height * 2  # 1 at the edge of the box
            inside = np.maximum(across, down) < 1
            shape = (inside, across**2 + down**2 < 1, inside & (np.minimum(across, down) < 0.4))[kind]
            image[:, shape] += random.uniform(0.5, 1.0, (3, 1))
            column, row = int(x * GRID / SIDE), int(y * GRID / SIDE)
            label[:, row, column] = 0  # a later object hides an earlier one in its cell
            label[kind, row, column] = 1
            label[COUNT:, row, column] = x * GRID / SIDE - column, y * GRID / SIDE - row, width / SIDE, height / SIDE
    return TensorDataset(torch.tensor(images).float(), torch.tensor(labels).float().flatten(1))


class Detector(nn.Module):
    """Convolutions on images (batch, 3, 32, 32), with a head for classes and one for boxes, (batch, ..., 8, 8) each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        )
        self.classes = nn.Conv2d(width, COUNT, 3, padding=1)
        self.boxes = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the scores of classes, and boxes between 0 and 1."""
        features = self.body(image)
        return {"logits": self.classes(features), "boxes": self.boxes(features).sigmoid()}


def pack(output: dict[str, Tensor]) -> Tensor:
    """Return a detector's output as one tensor, (batch, CHANNELS * GRID * GRID), as labels are."""
    return torch.cat([output["logits"], output["boxes"]], 1).flatten(1)


def unpack(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes, (batch, COUNT, GRID, GRID) of 0 and 1, and the boxes, (batch, 4, GRID, GRID)."""
    cells = labels.reshape(-1, CHANNELS, GRID, GRID)
    return cells[:, :COUNT], cells[:, COUNT:]


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every class in every cell, few of which have an object; mean over the batch."""
    classes, _ = unpack(labels)
    weight = torch.where(classes > 0, 10.0, 1.0)
    return F.binary_cross_entropy_with_logits(logits, classes, weight, reduction="sum") / len(logits)


def box_loss(boxes: Tensor, labels: Tensor) -> Tensor:
    """Absolute error of boxes, in cells with an object; mean over the batch."""
    classes, target = unpack(labels)
    return ((boxes - target).abs() * classes.sum(1, keepdim=True)).sum() / len(boxes)


def soft_class_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities; mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, teacher_logits.sigmoid(), reduction="sum") / len(logits)


def soft_box_loss(boxes: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Absolute error to the teacher's boxes, weighted by its largest probability in the cell; mean over the batch."""
    teacher_boxes, teacher_logits = target
    confidence = teacher_logits.sigmoid().amax(1, keepdim=True)
    return ((boxes - teacher_boxes).abs() * confidence).sum() / len(boxes)


@dataclass(frozen=True)
class DetectionF1:
    """F1 of the cells with a class above `threshold`; one is right if class and box are, by an overlap of `overlap`."""

    threshold: float = 0.5
    overlap: float = 0.5
    name: str = "detection_f1"

    def fit(self, validation: Predictions) -> "DetectionF1":
        """Return self: both thresholds are options."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the metric over all cells of all images."""
        logits, boxes = unpack(torch.as_tensor(test.outputs))
        classes, target = unpack(torch.as_tensor(test.labels))
        detected = logits.amax(1).sigmoid() > self.threshold  # (images, rows, columns)
        right = detected & (classes.sum(1) > 0) & (logits.argmax(1) == classes.argmax(1))
        right &= intersection_over_union(boxes, target) > self.overlap
        return MetricResult(value=float(2 * right.sum() / (detected.sum() + (classes.sum(1) > 0).sum()).clamp(min=1)))


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap of boxes, (batch, 4, GRID, GRID) each -> (batch, GRID, GRID)."""
    (low, high), (other_low, other_high) = [
        (centre / GRID - size / 2, centre / GRID + size / 2)
        for centre, size in ((boxes[:, :2], boxes[:, 2:]) for boxes in (first, second))
    ]
    common = (high.minimum(other_high) - low.maximum(other_low)).clamp(min=0).prod(1)
    return common / (first[:, 2:].prod(1) + second[:, 2:].prod(1) - common).clamp(min=1e-6)


def recipe(epochs: int = 12, train: int = 768, width: int = 8, teach_weight: float = 0.5) -> Recipe:
    """Return the experiment.

    epochs: number of epochs of each stage.
    train: number of training scenes.
    width: channels of the student; the teacher has 32.
    teach_weight: weight of the terms that match the teacher.
    """
    teacher = Net("teacher", Detector(32), element=pack)
    student = Net("student", Detector(width), element=pack)

    def truth(net: Net[Detector]) -> Objective:
        classes = Truth(class_loss, label="classes", student=Tap(net.module, element="logits"))
        return classes + Truth(box_loss, label="boxes", student=Tap(net.module, element="boxes"))

    logits, boxes = Tap(teacher.module, element="logits"), Tap(teacher.module, element="boxes")
    match = Match(teacher, soft_class_loss, student=Tap(student.module, element="logits"), target=logits) + Match(
        teacher, soft_box_loss, student=Tap(student.module, element="boxes"), target=(boxes, logits)
    )
    training = Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=5e-3))
    return Recipe(
        data=TorchData(scenes(train, 0), scenes(128, 1), scenes(256, 2), task="regression"),
        schedule=[
            Stage({teacher: truth(teacher)}, training),
            Stage({student: truth(student) + teach_weight * match}, training),
        ],
        metrics=(DetectionF1(),),
    )
