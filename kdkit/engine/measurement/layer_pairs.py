"""Advise which layers of a student and a teacher to pair, by their similarity on a few batches, depth and shape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdkit.engine.measurement.layer_similarity import Layer, compared_layers, matched_nets, similarities, spread_batches
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.randomness import preserve_rng_state

_MOST_LAYERS = 64  # compared per network
_RESIZED = 0.9  # factor for layers whose positions differ, because resizing loses information


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """A student layer and a teacher layer. similarity: their linear CKA, approximately in [0, 1]."""

    student: Layer
    teacher: Layer
    similarity: float

    @property
    def score(self) -> float:
        """The similarity, reduced for layers at different depths and for features that must be resized."""
        distance = abs(self.student.depth - self.teacher.depth)
        same_positions = self.student.shape[1:] == self.teacher.shape[1:]
        return max(self.similarity, 0.0) * (1 - distance) * (1.0 if same_positions else _RESIZED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAdvice:
    """The best pairs of layers of a student and a teacher, from the input to the output."""

    student: Net[Any]
    teacher: Net[Any]
    pairs: tuple[LayerPair, ...]


def pair_advice(
    recipe: Recipe, device: torch.device, precision: Precision = "fp32", *, count: int = 5
) -> tuple[PairAdvice, ...]:
    """Return the best layer pairs for each student and each network that it matches, at most `count` each.

    Networks run with their current weights, in eval mode, on up to 128 samples of the training split. Pairs do not
    cross, and use each layer once.
    """
    matched = matched_nets(recipe.stages)
    data = [batch.to(device) for batch in spread_batches(recipe.data.train)] if matched else []
    nets = tuple(dict.fromkeys(net for pair in matched for net in pair))
    with preserve_rng_state(), autocast(precision, device):
        measured = compared_layers(nets, data, most=_MOST_LAYERS) if matched else {}
    return tuple(
        PairAdvice(student=student, teacher=teacher, pairs=_best(measured[student], measured[teacher], count))
        for student, teacher in matched
    )


def _best(students: Sequence[Layer], teachers: Sequence[Layer], count: int) -> tuple[LayerPair, ...]:
    """Return the pairs with the highest scores that use each layer once and do not cross."""
    candidates = [
        LayerPair(student=student, teacher=teacher, similarity=similarity)
        for student, row in zip(students, similarities(students, teachers), strict=True)
        for teacher, similarity in zip(teachers, row, strict=True)
        if not math.isnan(similarity)
    ]
    chosen: list[LayerPair] = []
    for pair in sorted(candidates, key=lambda pair: -pair.score):
        is_in_order = all(
            (pair.student.depth - better.student.depth) * (pair.teacher.depth - better.teacher.depth) > 0
            for better in chosen
        )
        if len(chosen) < count and pair.score > 0 and is_in_order:
            chosen.append(pair)
    return tuple(sorted(chosen, key=lambda pair: pair.student.depth))
