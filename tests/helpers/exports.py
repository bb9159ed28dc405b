"""A small net on signals, trained in a moment, for the tests of exports."""

import json
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.metrics import MacroAUROC, MacroF1

CLASSES = ["slow", "fast", "loud"]


class Waves(nn.Module):
    """Two convolutions with batch norms, whose even kernel needs uneven padding, and a second input of two numbers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, width, 4), nn.BatchNorm1d(width)
        self.second, self.last_norm = nn.Conv1d(width, width, 4, stride=2), nn.BatchNorm1d(width)
        self.shortcut = nn.Conv1d(width, width, 1, stride=2)
        self.head = nn.Linear(width + 2, len(CLASSES))

    def forward(self, signal: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.first(nn.functional.pad(signal, (1, 2)))))
        main = self.last_norm(self.second(nn.functional.pad(hidden, (1, 2))))
        pooled = torch.relu(main + self.shortcut(hidden)).mean(-1)
        return self.head(torch.cat((pooled, person), 1))


def waves(rows: int, seed: int) -> TensorDataset:
    """Return signals (rows, 2, 64) of two frequencies and amplitudes, each with two numbers, and their classes."""
    random = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 6.3, 64)
    labels = torch.randint(2, (rows, 3), generator=random).float()
    slow, fast = labels[:, :1] * torch.sin(times), labels[:, 1:2] * torch.sin(8 * times)
    signal = (1 + labels[:, 2:]) * (slow + fast)
    signal = torch.stack((signal, signal.flip(1)), 1) + 0.3 * torch.randn(rows, 2, 64, generator=random)
    return TensorDataset(signal, torch.rand(rows, 2, generator=random), labels)


class WaveData(torch.utils.data.Dataset):
    """Samples ((signal, person), labels)."""

    classes = CLASSES

    def __init__(self, rows: int, seed: int) -> None:
        self.tensors = waves(rows, seed).tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int):
        signal, person, labels = (tensor[index] for tensor in self.tensors)
        return (signal, person), labels


def recipe(epochs: int = 4, lr: float = 0.02) -> Recipe:
    """Return a recipe that trains the net on its labels."""
    from kdkit import Optimizer

    torch.manual_seed(0)
    student = Net("student", Waves())
    training = Training(epochs=epochs, batch_size=16, optimizer=Optimizer(torch.optim.Adam, lr=lr))
    data = TorchData(WaveData(160, 0), WaveData(80, 1), WaveData(120, 2), classes=CLASSES, task="multilabel")
    stage = Stage({student: Truth(nn.BCEWithLogitsLoss())}, training)
    return Recipe(data=data, metrics=(MacroAUROC(), MacroF1()), schedule=[stage])


def read_litert_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata in a LiteRT model, empty if it has none of kdkit."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    for entry in model.metadata or []:
        if entry.name in ("kdkit", b"kdkit"):
            metadata: dict[str, Any] = json.loads(bytes(bytearray(model.buffers[entry.buffer].data)))
            return metadata
    return {}
