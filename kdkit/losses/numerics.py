"""Precision and norms: keep losses and their gradients finite in half precision, and for vectors of zeros."""

import math

import torch
from torch import Tensor, nn

from kdkit.losses.sides import TensorOrTuple, as_tuple

# Norms up to this count as 0 and are not divided by. Public code divides by max(norm, 1e-12) or norm + 1e-12 instead,
# which multiplies the gradient of a zero vector by 1e12. See `least_norm` for fp16.
MIN_NORM = 1e-12


def upcast_half(features: Tensor) -> Tensor:
    """Return half-precision features in float32, and others unchanged."""
    # fp16 overflows at 65504, which sums and powers soon exceed; bf16 keeps 8 significant bits.
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def cast_for(module: nn.Module, features: Tensor) -> Tensor:
    """Return features in bf16, fp16 or float64 in the precision of the module's weights.

    Under autocast, which casts them itself, they are returned unchanged.
    """
    # most steps need the first comparison only: a walk over the parameters takes 20 µs
    if features.dtype == torch.float32 or torch.is_autocast_enabled(features.device.type):
        return features
    weight = next(module.parameters(), None)
    return features if weight is None else features.to(weight.dtype)


def least_norm(features: Tensor) -> float:
    """Return the norm up to which features of this precision count as 0.

    A gradient goes back to the precision of the features, even if they are upcast for the loss. It grows as 1 / norm,
    which exceeds the range of fp16 for norms below its least normal number, 6e-5.
    """
    return torch.finfo(torch.float16).tiny if features.dtype == torch.float16 else MIN_NORM


def unit_vectors(vectors: Tensor, dim: int = 1, *, least: float = MIN_NORM) -> Tensor:
    """Return vectors divided by their length along `dim`. Lengths up to `least` count as 0.

    Vectors of length 0 keep their values, with a finite gradient. For upcast features, pass their `least_norm`.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > least, length, 1.0)


def standardise(features: Tensor, dim: int | list[int], eps: float, *, correction: int = 1) -> Tensor:
    """Return features with mean 0 and standard deviation 1 along `dim`, in float32 or better.

    eps is added to the deviation. Equal numbers become 0 without a gradient, which would be about 1 / eps.
    """
    numbers = upcast_half(features)
    deviation, mean = torch.std_mean(numbers, dim, correction=correction, keepdim=True)
    return (numbers - mean) / torch.where(deviation > least_norm(features), deviation + eps, math.inf)


def flatten_samples(features: Tensor) -> Tensor:
    """Return one vector per sample, (batch, numbers), in float32 or better."""
    return upcast_half(features).flatten(1)


def rescale_by_max(samples: Tensor, *, least: float) -> Tensor:
    """Return samples divided by their largest absolute value, for relations that do not depend on the scale.

    Products of very small or very large numbers would otherwise underflow or overflow. Samples up to `least` become 0.
    """
    largest = samples.detach().abs().amax()
    return samples / torch.where(largest > least, largest, math.inf)


def gram_matrix(samples: Tensor) -> Tensor:
    """Return the inner products of all pairs of samples, (batch, batch)."""
    return samples @ samples.T


def without_autocast(side: TensorOrTuple) -> torch.autocast:
    """Return a context that disables autocast, so that matrix products keep the precision of their inputs."""
    return torch.autocast(as_tuple(side)[0].device.type, enabled=False)
