"""Taps: capture tensors of layers while a network runs.

A `Tap` describes what is captured, and `attach` registers its hook. `OpenTaps` attaches the taps of a network and holds
what they captured in the last forward pass. The form of the tensor, such as which dimension has the channels, is
decided in the first pass, by `FeatureForm` in layout.py.
"""

from kdkit.nets.taps.attention import AttentionTap
from kdkit.nets.taps.base import Tap, TapLike, moves_channels
from kdkit.nets.taps.classifier import ClassifierTap
from kdkit.nets.taps.head import HeadTap, is_left_out, left_out
from kdkit.nets.taps.layout import describe_layer, path_of
from kdkit.nets.taps.open_taps import OpenTaps, tap

__all__ = [
    "AttentionTap",
    "ClassifierTap",
    "HeadTap",
    "OpenTaps",
    "Tap",
    "TapLike",
    "describe_layer",
    "is_left_out",
    "left_out",
    "moves_channels",
    "path_of",
    "tap",
]
