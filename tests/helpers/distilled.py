"""Networks and data for runs of a few tiny steps, and what holds after every one of them."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Net, Recipe, Result, Stage, TorchData, Training
from kdkit.losses import SoftTargets
from kdkit.recipe.objective import Objective, Term

CLASSES = 3
ROWS = 10
SIDE = 32  # of images

cross_entropy = nn.CrossEntropyLoss()
soft = SoftTargets()


def distilled(student: Net[Any], objective: Objective | Term, data: TorchData, *, epochs: int = 1) -> Result:
    """Run one stage and assert that its terms are finite, that the student changed and that the teachers did not."""
    stage = Stage({student: objective}, Training(epochs=epochs, batch_size=4, keep="last"))
    nets = [teacher for teacher in stage.teachers if isinstance(teacher, Net)]
    teachers = [net for net in nets if isinstance(net.module, nn.Module)]  # a plain callable has no state
    before = {net: copy.deepcopy(net.network.state_dict()) for net in [student, *teachers]}
    modes = {net: net.network.training for net in teachers}
    result = kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu")
    terms = result.history[stage.name][-1]["terms"]
    assert terms
    assert all(math.isfinite(value) for value in terms.values())
    assert any(not torch.equal(value, before[student][key]) for key, value in student.network.state_dict().items())
    for net in teachers:
        assert net.network.training is modes[net]
        for key, value in net.network.state_dict().items():
            # Also the buffers: a teacher whose batch norm updated its statistics would be another teacher.
            torch.testing.assert_close(value, before[net][key], rtol=0, atol=0)
    # A tap is a hook, which a run removes at its end.
    for net in [student, *teachers]:
        for module in net.network.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
    return result


def outputs(net: Net[Any], data: TorchData) -> Tensor:
    with torch.no_grad():
        return net(data.train.batch(torch.arange(ROWS), 0))


def labels() -> Tensor:
    return torch.arange(ROWS) % CLASSES


def data_of(inputs: Tensor) -> TorchData:
    dataset = TensorDataset(inputs, labels())
    return TorchData(dataset, dataset)


class Conv1d(nn.Module):
    """A network on (batch, channels, time)."""

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.ReLU()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.activation(self.norm(self.conv(signal))).mean(-1))


class Conv2d(nn.Module):
    """A network on (batch, channels, height, width) as in torchvision: a norm, then an in-place ReLU."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(image))).mean((2, 3)))
