"""What tests of recorded answers share: data in several draws, a stage with a trained teacher, and who was asked."""

from typing import Any

import torch
from torch import Tensor

from kdkit import Batch, Data, Match, Net, Recipe, Split, Stage, Tap
from kdkit.losses import Hint, SoftTargets
from kdkit.teachers import Frozen

from .stages import Small, training, truth

ROWS = 24


class Rows(Split):
    """Points whose noise is another in each draw."""

    def __init__(self, first: int, rows: int, noise: float) -> None:
        self.ids = torch.arange(first, first + rows).flip(0)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        ids = self.ids[rows]
        labels = ids % 3
        noise = torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(int(i) * 97 + draw)) for i in ids])
        return Batch(torch.eye(3, 6)[labels] + self.noise * noise, labels, ids, draw)


class Drawn(Data):
    """Data of as many draws as wanted."""

    classes: tuple[str, ...] = ("a", "b", "c")
    task = "multiclass"

    def __init__(self, draws: int | None = 1, *, noise: float = 0.5, rows: int = ROWS) -> None:
        self.draws, self.fingerprint = draws, f"drawn-{draws}-{noise}"
        self.train, self.validation, self.test = Rows(0, rows, noise), Rows(100, 12, noise), None


def net(width: int, seed: int, name: str, **options: Any) -> Net[Any]:
    torch.manual_seed(seed)
    return Net(name, Small(width), **options)


def taught(
    *, draws: int | None = 1, epochs: int = 3, teacher: Net[Any] | None = None, taps: bool = False, **changes: Any
) -> Recipe:
    """A student that learns from a trained teacher."""
    teacher = teacher or net(12, 1, "teacher", trained=True)
    student = net(4, 2, "student")
    objective = truth() + Match(teacher, SoftTargets())
    if taps:
        objective = objective + Match(
            teacher, Hint(), student=Tap(student.module.norm), target=Tap(teacher.module.norm)
        )
    stage = Stage({student: objective}, training(epochs=epochs, **changes.pop("training", {})))
    return Recipe(**{"data": Drawn(draws), "schedule": [stage], **changes})


class Asked:
    """Counts the samples that frozen nets are asked for in training: a whole batch or what is missing of it."""

    def __init__(self, monkeypatch: Any, batch: int = 8) -> None:
        self.calls: list[tuple[str, int]] = []
        original = Frozen.__call__

        def ask(frozen: Frozen, given: Batch) -> Any:
            self.calls.append((frozen.net.name, len(given)))
            return original(frozen, given)

        monkeypatch.setattr(Frozen, "__call__", ask)
        self.batch = batch

    def samples(self, name: str = "teacher") -> int:
        """How many were asked for in batches of the full size, which no rehearsal or audit has."""
        count = sum(size for who, size in self.calls if who == name and size == self.batch)
        self.calls.clear()
        return count
