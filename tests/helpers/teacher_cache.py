"""Data in several draws, a recipe with a trained teacher, and a count of the samples that teachers run on."""

from typing import Any

import torch
from torch import Tensor

from kdkit import Batch, Data, Match, Net, Recipe, Split, Stage, Tap
from kdkit.losses import Hint, SoftTargets
from kdkit.teachers import Frozen

from .stages import Small, training, truth

ROWS = 24


class NoisySplit(Split):
    """Points with noise that differs between draws."""

    def __init__(self, first_id: int, rows: int, noise: float) -> None:
        self.ids = torch.arange(first_id, first_id + rows).flip(0)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        ids = self.ids[rows]
        labels = ids % 3
        generators = [torch.Generator().manual_seed(int(sample) * 97 + draw) for sample in ids]
        noise = torch.stack([torch.randn(6, generator=generator) for generator in generators])
        return Batch(torch.eye(3, 6)[labels] + self.noise * noise, labels, ids, draw)


class NoisyData(Data):
    """Data with any number of draws."""

    classes: tuple[str, ...] = ("a", "b", "c")
    task = "multiclass"

    def __init__(self, draws: int | None = 1, *, noise: float = 0.5, rows: int = ROWS) -> None:
        self.draws, self.fingerprint = draws, f"noisy-{draws}-{noise}"
        self.train, self.validation, self.test = NoisySplit(0, rows, noise), NoisySplit(100, 12, noise), None


def make_net(width: int, seed: int, name: str, **options: Any) -> Net[Any]:
    torch.manual_seed(seed)
    return Net(name, Small(width), **options)


def make_recipe(
    *, draws: int | None = 1, epochs: int = 3, teacher: Net[Any] | None = None, taps: bool = False, **changes: Any
) -> Recipe:
    """A student that learns from a trained teacher."""
    teacher = teacher or make_net(12, 1, "teacher", trained=True)
    student = make_net(4, 2, "student", view=changes.pop("student_view", None))
    objective = truth() + Match(teacher, SoftTargets())
    if taps:
        objective = objective + Match(
            teacher, Hint(), student=Tap(student.module.norm), target=Tap(teacher.module.norm)
        )
    stage = Stage({student: objective}, training(epochs=epochs, **changes.pop("training", {})))
    return Recipe(**{"data": NoisyData(draws), "schedule": [stage], **changes})


class TeacherCalls:
    """Counts the samples that frozen teachers run on in training: a whole batch, or the misses of one."""

    def __init__(self, monkeypatch: Any, batch_size: int = 8) -> None:
        self.calls: list[tuple[str, int]] = []  # name of the teacher and number of samples
        self.batch_size = batch_size
        original = Frozen.__call__

        def count(frozen: Frozen, batch: Batch) -> Any:
            self.calls.append((frozen.net.name, len(batch)))
            return original(frozen, batch)

        monkeypatch.setattr(Frozen, "__call__", count)

    def samples(self, name: str = "teacher") -> int:
        """Return the samples in batches of the full size, which no dry run and no audit has, and start again from 0."""
        count = sum(size for teacher, size in self.calls if teacher == name and size == self.batch_size)
        self.calls.clear()
        return count
