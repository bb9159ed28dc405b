"""Segment images: a small network learns from a U-Net, pixel by pixel, channel by channel, and by its structure.

Each pixel is a sample to `SoftTargets`; `CWD` compares where each class is found, and `PairwiseAffinity` which regions
look alike. Without a folder, the images are synthetic: discs and squares on a noisy background, with a border that has
no label. A run then takes about twenty seconds on two cores. For your own images, write your classes in `CLASSES`.

    kdkit run examples/segmentation.py
    kdkit run examples/segmentation.py --soft 0 --channels 0 --structure 0
    kdkit run examples/segmentation.py --folder FOLDER --size 256 --workers 8
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import kdkit
from kdkit import Images, Match, Net, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import CWD, PairwiseAffinity, SoftTargets

CLASSES = ("background", "disc", "square")
SIZE = 24  # height and width of the synthetic images
VOID = 255  # the label of unlabelled pixels


def scenes(count: int, seed: int) -> TensorDataset:
    """Return images (count, 3, 24, 24) with two objects each, and the class of each pixel, (count, 24, 24)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for shape in (1, 2):
        centre = torch.randint(5, SIZE - 5, (2, count, 1, 1), generator=generator)
        radius = torch.randint(3, 6, (count, 1, 1), generator=generator)
        dy, dx = (y - centre[0]).abs(), (x - centre[1]).abs()
        inside = dy**2 + dx**2 <= radius**2 if shape == 1 else torch.maximum(dy, dx) <= radius
        labels[inside] = shape
    colours = torch.tensor([[0.4, 0.4, 0.4], [0.5, 0.4, 0.4], [0.4, 0.5, 0.4]])  # so close that the shape matters
    images = colours[labels].movedim(-1, 1) + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels[:, [0, -1]] = VOID
    return TensorDataset(images, labels)


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Crops of the images in folder/images that have a mask: folder/masks/NAME.png, whose pixels are class indices."""

    def __init__(self, folder: Path, *, size: int, augment: bool) -> None:
        images = {path.stem: path for path in (folder / "images").iterdir()}
        self.files = [(images[mask.stem], mask) for mask in sorted((folder / "masks").glob("*.png"))]
        crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])
        self.transform = crop if augment else v2.Resize((size, size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, mask = map(Image.open, self.files[row])
        pair = v2.functional.to_image(image.convert("RGB")), tv_tensors.Mask(np.array(mask))
        image, mask = self.transform(*pair)
        return image, mask.long()


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """A U-Net with two levels (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.bottom = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up_second, self.up_first = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes, height, width)."""
        first = self.first(images)
        second = self.second(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.up_second(torch.cat([second, F.interpolate(bottom, scale_factor=2)], 1))
        outputs: Tensor = self.head(self.up_first(torch.cat([first, F.interpolate(second, scale_factor=2)], 1)))
        return outputs


class SmallNet(nn.Module):
    """Convolutions at half the resolution, and a head whose outputs are interpolated to the size of the labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, width), nn.AvgPool2d(2), block(width, 2 * width), block(2 * width, width))
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes, height, width)."""
        return F.interpolate(self.head(self.body(images)), images.shape[-2:], mode="bilinear")


def recipe(
    folder: Path | None = None,
    size: int = 128,
    soft: float = 0.5,
    channels: float = 0.5,
    structure: float = 1.0,
    images: int = 384,
    epochs: int = 8,
    workers: int = 0,
) -> kdkit.Recipe:
    """Return the experiment.

    folder: contains train, validation and test, each with folders images and masks; synthetic images by default.
    size: height and width of the crops of images in the folder, a multiple of 4.
    soft: weight of the soft targets of each pixel.
    channels: weight of the channel-wise distillation of the outputs.
    structure: weight of the affinities between regions.
    images: number of synthetic training images.
    epochs: number of epochs of each stage.
    workers: processes that read the images.
    """
    large, small = UNet(8), SmallNet(6)
    if folder is None:
        data = TorchData(scenes(images, 0), scenes(128, 1), scenes(256, 2), classes=CLASSES, ignore_index=VOID)
        teacher, student = Net("teacher", large), Net("student", small)
    else:
        splits = [Scenes(folder / name, size=size, augment=name == "train") for name in ("train", "validation", "test")]
        data = TorchData(*splits, classes=CLASSES, ignore_index=VOID)
        view = Images(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        teacher, student = Net("teacher", large, view=view), Net("student", small, view=view)
    truth = Truth(nn.CrossEntropyLoss(ignore_index=VOID))
    objective = (
        truth
        + soft * Match(teacher, SoftTargets(temperature=2.0))
        + channels * Match(teacher, CWD(temperature=1.0))
        + structure * Match(teacher, PairwiseAffinity(), student=Tap(small.body), target=Tap(large.bottom))
    )
    training = Training(
        epochs=epochs,
        batch_size=16,
        workers=workers,
        optimizer=kdkit.Optimizer(torch.optim.Adam, lr=1e-2),
        lr_schedule=kdkit.LRSchedule(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, interval="update"),
    )
    return kdkit.Recipe(data=data, schedule=[Stage({teacher: truth}, training), Stage({student: objective}, training)])
