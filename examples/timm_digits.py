"""Two networks of timm: the student matches the teacher's outputs and the features of a middle stage.

Teacher and student see the same digits at different sizes and with different normalisations. Their features differ in
shape, so the hint trains a projector between them, which is not part of the final student. A run takes about a minute.

    kdkit run examples/timm_digits.py
    kdkit run examples/timm_digits.py --teacher test_convnext --student test_efficientnet --hint 0
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import CrossEntropyLoss
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset, random_split

import kdkit
from kdkit import Images, Match, Net, Parallel, TorchData, Training, Truth, timm_tap
from kdkit.losses import Hint, SoftTargets


def recipe(
    teacher: str = "test_resnet", student: str = "test_efficientnet", hint: float = 0.1, epochs: int = 8
) -> kdkit.Recipe:
    """Return the experiment.

    teacher: name of the teacher in timm.
    student: name of the student in timm.
    hint: weight of the hint.
    epochs: number of epochs of each stage.
    """
    timm = kdkit.registry("models")["timm"]
    large = timm(teacher, num_classes=10, in_chans=1)
    small = timm(student, num_classes=10, in_chans=1)
    digits, labels = load_digits(return_X_y=True)
    images = torch.tensor(digits, dtype=torch.float32).view(-1, 1, 8, 8) / 16  # (samples, 1, 8, 8), from 0 to 1
    samples = TensorDataset(images, torch.tensor(labels))
    splits = random_split(samples, (1000, 297, 500), torch.Generator().manual_seed(0))

    def match(net: Net[Any], teacher: Net[Any]) -> kdkit.Objective:
        # Stage 2 of either network, found by timm's own names.
        middle = Match(teacher, Hint(), student=timm_tap(net.network, 2), target=timm_tap(teacher.network, 2))
        return Match(teacher, SoftTargets()) + hint * middle

    return kdkit.Recipe(
        data=TorchData(*splits, classes=list("0123456789")),
        schedule=Parallel(
            # A view resizes and normalises the images for one network only.
            Net("teacher", large, view=Images(mean=(0.5,), std=(0.5,), size=(48, 48))),
            Net("student", small, view=Images(mean=(0.3,), std=(0.4,), size=(32, 32))),
            truth=Truth(CrossEntropyLoss()),
            match=match,
            label_weight=0.3,
            training=Training(
                epochs=epochs,
                optimizer=kdkit.Optimizer(AdamW, lr=3e-3),
                lr_schedule=kdkit.LRSchedule(OneCycleLR, max_lr=3e-3, interval="update"),
            ),
        ),
    )
