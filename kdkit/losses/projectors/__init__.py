"""Bring features of different shapes together, in any number of dimensions."""

from kdkit.losses.projectors.convolutional import Bottleneck, Regressor
from kdkit.losses.projectors.factory import KINDS, Kind, make_projector
from kdkit.losses.projectors.fusion import Fusion
from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution
from kdkit.losses.projectors.linear import MLP, Projector
from kdkit.losses.projectors.resizing import arrange, meet, resize

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
