"""A data set: points in clusters, one cluster for each class."""

import torch
from kdkit import RecipeError, TorchData
from torch.utils.data import TensorDataset


class Clusters(TorchData):
    """Points in the plane around the corners of a triangle, which is their class.

    count: of training samples; there are as many for validation, and as many for testing. spread: standard deviation of
    a cluster. seed: of the points. Raises RecipeError for fewer than 3 samples.
    """

    def __init__(self, count: int = 120, spread: float = 0.5, seed: int = 0) -> None:
        if count < 3:
            raise RecipeError(f"count must be at least 3, a sample for each class; got {count!r}")
        generator = torch.Generator().manual_seed(seed)
        corners = torch.tensor([[0.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
        splits = []
        for _ in range(3):  # train, validation, test
            labels = torch.arange(count) % 3
            noise = torch.randn(count, 2, generator=generator)
            splits.append(TensorDataset(corners[labels] + spread * noise, labels))
        super().__init__(*splits, classes=("top", "left", "right"))
