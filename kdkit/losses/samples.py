"""What relates samples works on: each one a vector, in a precision that keeps small differences."""

import torch
from torch import Tensor

from kdkit.losses.projected import SILENT, Sided, full, several


def vectors(features: Tensor) -> Tensor:
    """Return (batch, numbers), in single precision at least: one vector for each sample."""
    return full(features).flatten(1)


def scaled(samples: Tensor) -> Tensor:
    """Return samples whose largest number is 1, for relations that do not see the scale.

    Products of small numbers, and what is divided by these, would leave what a float holds.
    """
    size = samples.detach().abs().amax()
    return samples / torch.where(size > SILENT, size, 1.0)


def products(samples: Tensor) -> Tensor:
    """Return the inner products of all pairs, (batch, batch)."""
    return samples @ samples.T


def without_autocast(side: Sided) -> torch.autocast:
    """Return the context in which products are computed in the precision of their factors."""
    return torch.autocast(several(side)[0].device.type, enabled=False)
