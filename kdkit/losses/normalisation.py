"""Normalise the features of a teacher before they are compared, in any number of dimensions."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kdkit.losses.numerics import without_autocast

TargetNormalisation = Literal["none", "layer_norm", "standardise", "whiten"]

# Added to variances, as torch's layer norm does.
EPS = 1e-5


def layer_norm(features: Tensor) -> Tensor:
    """Return features (batch, channels, ...) of mean 0 and variance 1 over the channels of every position."""
    variance, mean = torch.var_mean(features, 1, correction=0, keepdim=True)
    return (features - mean) * (variance + EPS).rsqrt()


def standardise(features: Tensor) -> Tensor:
    """Return features (batch, channels, ...) minus the mean of each channel, divided by one scale for all channels.

    The mean of their variances over the positions of the batch is then 1. PHI-S (Ranzinger et al. 2024,
    arXiv:2410.01680) also rotates the channels, so that all have this variance; the rotation does not change a squared
    error, because a linear projector can learn it.
    """
    variances, mean = torch.var_mean(features, [0, *range(2, features.ndim)], correction=0, keepdim=True)
    variance = variances.mean()
    variance = torch.where(variance > torch.finfo(variance.dtype).tiny, variance, 1)  # of features that are constant
    return (features - mean) / variance.sqrt()


def whiten(features: Tensor) -> Tensor:
    """Return features (batch, channels, ...) whose channels are uncorrelated, of mean 0 and variance 1.

    The covariance is over the positions of the batch. It is decomposed by Cholesky, which unlike an eigenvalue
    decomposition does not wait for a GPU, and has no gradient. The whitened features equal those of any other
    decomposition up to a rotation, which an orthogonal projector learns.
    """
    rows = features.movedim(1, -1).flatten(0, -2)  # (batch * positions, channels)
    with without_autocast(features):
        centred = rows - rows.mean(0)
        with torch.no_grad():
            covariance = centred.T @ centred / len(rows)
            # Channels in units of the largest deviation, so that EPS is small compared to it, whatever the scale.
            scale = covariance.diagonal().amax()
            scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1)
            # EPS also makes a covariance of fewer rows than channels positive definite
            identity = torch.eye(len(covariance), dtype=rows.dtype, device=rows.device)
            factor, _ = torch.linalg.cholesky_ex(covariance / scale + EPS * identity)
        # L⁻¹ x for every row x has covariance L⁻¹ (L Lᵀ) L⁻ᵀ = 1
        whitened: Tensor = torch.linalg.solve_triangular(factor, (centred / scale.sqrt()).T, upper=False)
    # (channels, batch * positions) -> (channels, batch, *positions) -> (batch, channels, *positions)
    return whitened.reshape(-1, len(features), *features.shape[2:]).transpose(0, 1)


def normalise_target(features: Tensor, normalisation: TargetNormalisation) -> Tensor:
    """Return features in float32 or better, normalised, or unchanged for "none"."""
    normalise = _NORMALISATIONS.get(normalisation)
    return features if normalise is None else normalise(features)


_NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": layer_norm,
    "standardise": standardise,
    "whiten": whiten,
}
