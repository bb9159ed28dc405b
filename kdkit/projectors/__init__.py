"""Bring features of different shapes together, in any number of dimensions."""

from kdkit.projectors.convolutional import Bottleneck, Regressor
from kdkit.projectors.fusion import Fusion
from kdkit.projectors.kinds import KINDS, Kind, make_projector
from kdkit.projectors.layers import BatchNorm, Pointwise, convolution
from kdkit.projectors.linear import MLP, Projector
from kdkit.projectors.resizing import arrange, meet, resize

__all__ = [
    "KINDS",
    "MLP",
    "BatchNorm",
    "Bottleneck",
    "Fusion",
    "Kind",
    "Pointwise",
    "Projector",
    "Regressor",
    "arrange",
    "convolution",
    "make_projector",
    "meet",
    "resize",
]
