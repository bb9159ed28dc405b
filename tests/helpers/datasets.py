"""A dataset of any samples, of which kdkit knows nothing but its length."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset


class Rows(Dataset[Any]):
    """The samples of a sequence, or of another dataset."""

    def __init__(self, samples: Sequence[Any] | Dataset[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]
