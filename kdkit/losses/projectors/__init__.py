"""Projectors, which map the student's features to the teacher's shape, in any number of dimensions."""

from kdkit.losses.projectors.convolutional import Bottleneck, Regressor
from kdkit.losses.projectors.factory import PROJECTORS, ProjectorKind, ProjectorMode, make_projector
from kdkit.losses.projectors.fusion import Fusion
from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution
from kdkit.losses.projectors.linear import MLP, Orthogonal, Projector
from kdkit.losses.projectors.resizing import match_positions, rearrange_tokens, resize

__all__ = [
    "MLP",
    "PROJECTORS",
    "BatchNorm",
    "Bottleneck",
    "Fusion",
    "Orthogonal",
    "Pointwise",
    "Projector",
    "ProjectorKind",
    "ProjectorMode",
    "Regressor",
    "convolution",
    "make_projector",
    "match_positions",
    "rearrange_tokens",
    "resize",
]
