"""Tiny nets and data that the tests of the core share."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth

FEATURES, CLASSES = 4, 3


def samples(task="multiclass", rows=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=random)
    # All three are drawn, so that the inputs of one seed are the same in each task.
    labels = {
        "multiclass": torch.arange(rows) % CLASSES,
        "multilabel": (torch.rand(rows, CLASSES, generator=random) > 0.5).float(),
        "regression": torch.randn(rows, CLASSES, generator=random),
    }
    return TensorDataset(inputs, labels[task])


def tiny_data(task="multiclass", rows=8, **options):
    options = {"classes": ["a", "b", "c"], "task": task, **options}
    # Three splits of different content, of which the training split alone has a size that tests choose.
    return TorchData(samples(task, rows), samples(task, 6, seed=1), samples(task, 6, seed=2), **options)


class Mlp(nn.Module):
    """A hidden layer with batch norm and an in-place ReLU, then the outputs."""

    def __init__(self, outputs=CLASSES, hidden=5, features=FEATURES):
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, inputs):
        return self.head(self.act(self.norm(self.hidden(inputs))))


def tiny_net(name, *, outputs=CLASSES, hidden=5, seed=0, **options):
    torch.manual_seed(seed)
    return Net(name, Mlp(outputs, hidden), **options)


def teacher_and_student():
    """Return a trained teacher and an untrained student."""
    return tiny_net("teacher", trained=True), tiny_net("student", seed=1)


def one_stage(net, objective, data=None, **training):
    """Return a recipe that trains one net on one objective."""
    training = {"epochs": 1, "batch_size": 4, **training}
    return Recipe(data=data or tiny_data(), schedule=[Stage({net: objective}, Training(**training))])


def plain_goal():
    return Truth(nn.CrossEntropyLoss())


def state_of(module):
    """Return all of a module that a test may expect to stay unchanged."""
    return {
        "tensors": {key: value.clone() for key, value in module.state_dict().items()},
        "modes": [submodule.training for submodule in module.modules()],
        "hooks": hooks_of(module),
        "gradients": {
            name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
        },
    }


def hooks_of(module):
    """Return the number of forward hooks: a tap that is still open has one."""
    return sum(len(submodule._forward_hooks) + len(submodule._forward_pre_hooks) for submodule in module.modules())


def same_state(before, after):
    # Bit for bit: a check or a tap that changes a value by rounding has changed it.
    return (
        all(same(before[kind], after[kind]) for kind in ("tensors", "gradients"))
        and before["modes"] == after["modes"]
        and before["hooks"] == after["hooks"]
    )


def same(first, second):
    """Return whether two dicts of tensors hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
