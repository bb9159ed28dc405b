"""A loss on the relations between the tokens of a text, which needs no projector (MiniLM)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.features import require_pairs, require_positions
from kdkit.losses.logits import kl_terms
from kdkit.losses.numerics import upcast_half, without_autocast
from kdkit.losses.positions import MaskSource, read_mask, require_mask_source
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.sides import TensorOrTuple, as_tuple
from kdkit.losses.validation import require_sides, validate_count


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniLM:
    """Divergence between the self-attention relations of both sides: of each token to all tokens of its text (MiniLM).

    In nats, mean over heads and tokens of a text, mean over the batch, summed over the taps. A relation is a softmax of
    the scaled inner products between the queries of a layer, or its keys, or its values: taps of these linear layers,
    in pairs. heads: the relation heads into which the channels of either side are split, so widths may differ. The
    paper uses 48 for teachers of 768 channels, 64 for those of 1024, and takes the last layer of the student and one of
    the upper ones of the teacher; heads=12 and the values alone are the value relations of the first MiniLM
    (arXiv:2002.10957).

    mask: the key of the mask of padded texts in inputs that are a mapping, usually "attention_mask", or a function of
    the inputs that returns it, (batch, tokens). Tokens that it leaves out count neither as rows nor in the softmax.
    Without a mask, all count. A text of one token adds 0. If positions differ, the larger map is average-pooled to the
    smaller.

    Formula: 1/(N heads) · Σ 1/P Σ p log(p / q), with p = softmax(tᵀt / √c) and q = softmax(sᵀs / √c) over the P
        tokens of a text, for each head of c channels
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
        Transformers", arXiv:2012.15828, sec. 3
    """

    heads: int = 1
    mask: MaskSource | None = None

    def __post_init__(self) -> None:
        validate_count("heads", self.heads)
        if self.mask is not None:
            require_mask_source(self.mask)

    @property
    def extra_kwargs(self) -> frozenset[str]:
        """The inputs of the batch, if the mask is among them."""
        return frozenset() if self.mask is None else frozenset({"inputs"})

    def __call__(self, student: TensorOrTuple, target: TensorOrTuple, *, inputs: Any = None) -> Tensor:
        """Return the divergence, minimal (0) if all relations are equal."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_pairs(len(students), len(targets), self)
        mask = None if self.mask is None else read_mask(self.mask, inputs).flatten(1)  # (batch, tokens)
        return torch.stack([self._layer(*pair, mask) for pair in zip(students, targets, strict=True)]).sum()

    def relations(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the logarithms of the relations of features (batch, channels, ...), (batch, heads, tokens, tokens).

        mask: which tokens count, (batch, tokens). Raises RecipeError if the features have other tokens, or if heads
        does not divide the channels.
        """
        batch, channels = features.shape[:2]
        if channels % self.heads:
            raise RecipeError(f"MiniLM(heads={self.heads}) splits channels evenly; got features of {channels} channels")
        # (batch, channels, *positions) -> (batch, heads, channels of a head, tokens)
        parts = upcast_half(features).reshape(batch, self.heads, channels // self.heads, -1)
        with without_autocast(features):
            scores = parts.mT @ parts / math.sqrt(parts.shape[2])
        if mask is not None:
            if mask.shape != (batch, scores.shape[-1]):
                raise RecipeError(
                    f"MiniLM compares features of the tokens of its mask {tuple(mask.shape)}; got "
                    f"{tuple(features.shape)}, (batch, channels, tokens)"
                )
            # A finite number instead of -inf, because a softmax over no token at all would be NaN.
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min / 2)
        return scores.log_softmax(3)

    def _layer(self, student: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        student, target = match_positions(require_positions(student, self), require_positions(target, self))
        student_log, target_log = self.relations(student, mask), self.relations(target, mask)
        rows = kl_terms(target_log, student_log).sum(3).mean(1)  # (batch, tokens)
        if mask is None:
            return rows.mean()
        return ((rows * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
