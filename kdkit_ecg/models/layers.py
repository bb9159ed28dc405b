"""Norm and mean over time, which leave the channels last in memory where a convolution put them there."""

from torch import Tensor, nn


class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d."""

    def forward(self, features: Tensor) -> Tensor:
        """Norm (N, channels, T) -> (N, channels, T)."""
        if not channels_lie_last(features):
            return super().forward(features)
        # torch would turn three dimensions. A sample for each step of time has the same norm, and lies there already.
        steps = features.transpose(1, 2)
        return super().forward(steps.flatten(0, 1)).view(steps.shape).transpose(1, 2)


def mean_over_time(features: Tensor) -> Tensor:
    """Average (N, channels, T) -> (N, channels), so that the gradient lies in memory as the features do."""
    return features.transpose(1, 2).mean(1) if channels_lie_last(features) else features.mean(-1)


def channels_lie_last(features: Tensor) -> bool:
    """Return whether (N, channels, T) lies in memory as (N, T, channels)."""
    return features.ndim == 3 and not features.is_contiguous() and features.transpose(1, 2).is_contiguous()
