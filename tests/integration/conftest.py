"""Data for networks of any kind, which `tests.helpers.distilled` distils."""

import pytest
import torch

from kdkit import TorchData
from tests.helpers.distilled import ROWS, SIDE, data_of


@pytest.fixture
def images() -> TorchData:
    return data_of(torch.rand(ROWS, 3, SIDE, SIDE))  # values of 0 to 1, as Images expects


@pytest.fixture
def signals() -> TorchData:
    return data_of(torch.randn(ROWS, 2, 16))  # (sample, channel, time)
