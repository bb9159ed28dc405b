"""Shared parts of the ECG networks: squeeze-excite, pooling, the head, LRH-Net's outline, and a check of sizes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from kdkit.utils.validation import validate_count
from kdkit_ecg.models.channels_last import mean_over_time
from kdkit_ecg.person import FEATURES

Preset = Literal["corrected", "paper"]

PERSON = len(FEATURES)
PERSON_FEATURES = 10


class EcgData(Protocol):
    """Data with named leads and classes, such as Records or Challenge2020."""

    @property
    def leads(self) -> Sequence[str]:
        """Names of the leads, in the order of the channels."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the label columns."""
        ...


class EcgNet(nn.Module):
    """A network with the parameters leads and classes, whose sizes may follow from data."""

    @classmethod
    def for_data(cls, data: EcgData, **options: Any) -> Self:
        """Return a network for the leads and classes of the data. options: parameters of the network.

        `leads` is the number of leads of its view, if it sees fewer than the data have.
        """
        return cls(**{"leads": len(data.leads), "classes": len(data.classes), **options})


class SqueezeExcite(nn.Module):
    """Weight each channel by a function of the means of all channels over time.

    Its two linear layers have no bias. Source: Hu et al., 2018, arXiv:1709.01507, section 3.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.activation = nn.ReLU()
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels, T) -> (N, channels, T); the weights are between 0 and 1."""
        weights: Tensor = torch.sigmoid(self.excite(self.activation(self.squeeze(mean_over_time(features)))))
        return features * weights.unsqueeze(-1)  # (N, channels, 1), the same at all times


class MeanOverTime(nn.Module):
    """Global average pool, a module so that it can be tapped."""

    def forward(self, features: Tensor) -> Tensor:
        """Average (N, channels, T) -> (N, channels)."""
        return mean_over_time(features)


class Head(nn.Module):
    """The part of a network from the pool to the logits, which SimKD reuses. It shares the network's layers.

    pool: (N, C, T) -> (N, C). person: (N, 5) -> (N, P). layers: (N, P + C) -> (N, classes).
    """

    def __init__(self, pool: nn.Module, person: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.person = person
        self.layers = layers

    def forward(self, features: Tensor, person: Tensor) -> Tensor:
        """Map features (N, C, T), person (N, 5) -> logits (N, classes)."""
        logits: Tensor = self.layers(join_person(self.person(person), self.pool(features)))
        return logits


class ThreeBlocks(EcgNet):
    """The outline of LRH-Net: a stem, three blocks, a pool over time, and linear layers that also take the person.

    Subclasses create the layers. `C` is the number of channels of block 3.
    """

    stem: nn.Module
    block1: nn.Module
    block2: nn.Module
    block3: nn.Module
    pool: nn.Module
    person: nn.Module
    hidden: nn.Module
    hidden_activation: nn.Module
    classifier: nn.Module

    def forward(self, signal: Tensor, person: Tensor) -> Tensor:
        """Map signal (N, leads, T), person (N, 5) -> logits (N, classes), for any T >= 1."""
        features = self.block3(self.block2(self.block1(self.stem(signal))))
        hidden = self.hidden(join_person(self.person(person), self.pool(features)))  # (N, 10 + C) -> (N, hidden)
        logits: Tensor = self.classifier(self.hidden_activation(hidden))
        return logits

    def body(self) -> nn.Sequential:
        """Return the layers before the pool: signal (N, leads, T) -> (N, C, T'), with T' of block 3."""
        layers = (("stem", self.stem), ("block1", self.block1), ("block2", self.block2), ("block3", self.block3))
        return nn.Sequential(OrderedDict(layers))

    def head(self) -> Head:
        """Return the layers from the pool on: features (N, C, T'), person (N, 5) -> logits (N, classes)."""
        return Head(self.pool, self.person, nn.Sequential(self.hidden, self.hidden_activation, self.classifier))


def join_person(person: Tensor, pooled: Tensor) -> Tensor:
    """Concatenate (N, P), (N, C) -> (N, P + C), the input of the last layers."""
    return torch.cat((person, pooled), dim=1)  # the person first, as in the authors' code


def check_sizes(**sizes: int) -> None:
    """Raise RecipeError unless each size is an integer of at least 1."""
    for name, size in sizes.items():
        validate_count(name, size)
