"""Notices about samples with positions, such as tokens, frames or pixels: their labels, padding and order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.data.labels import is_ignored
from kdkit.engine.check.facts import Facts
from kdkit.engine.stage.terms import BoundTerm
from kdkit.losses.base import BuildContext, Loss, describe_loss, is_of_kdkit, is_per_position
from kdkit.losses.catalog import ON_FEATURES
from kdkit.losses.contrastive import CRD
from kdkit.losses.hints import DistilHubert, Hint, SquareHead
from kdkit.losses.sides import as_tuple
from kdkit.losses.similarity import Cosine
from kdkit.metrics.base import Metric
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net
from kdkit.nets.taps import HeadTap
from kdkit.recipe.objective import Truth, taps_of
from kdkit.recipe.recipe import nets_of, weighted_terms

# CRD compares means over positions.
FEATURE_LOSSES = tuple(loss for loss in ON_FEATURES if isinstance(loss, type) and loss is not CRD)
_OF_DECODER = "decoder_input_ids"
_READ_BY_DECODERS = {_OF_DECODER, "decoder_inputs_embeds", "labels"}  # in models of transformers
# Some models have the method, others, such as Whisper, the function.
_SHIFT = "prepare_decoder_input_ids_from_labels or shift_tokens_right of transformers"
_LABELS = ("labels", "label", "targets", "target")  # inputs of models that compute a loss themselves


def position_notices(facts: Facts) -> Iterator[str]:
    """Yield notices about the positions that the labels have, and that terms compare."""
    yield from _classes_of_positions(facts)
    yield from _frames_of_sequences(facts)
    yield from _unlabelled_positions(facts)
    yield from _padding(facts)
    yield from _padding_of_labels(facts)
    yield from _masks_of_other_tokens(facts)
    yield from _inputs_of_decoders(facts)
    yield from _labels_of_decoders(facts.context, facts.batch, "the")
    yield from _sequences(facts)
    yield from _single_positions(facts)
    yield from _terms_of_copied_labels(facts)


def position_metric_notices(facts: Facts, metrics: Sequence[Metric], validation: Batch) -> Iterator[str]:
    """Yield notices about metrics that compare the output at a position with its label. validation: a tiny batch."""
    yield from _metrics_of_copied_labels(facts, validation)
    if not any(_labels_of_decoders(facts.context, facts.batch, "the")):
        yield from _labels_of_decoders(facts.context, validation, "the validation data's")
    yield from _metrics_of_sequences(facts, metrics)


def _classes_of_positions(facts: Facts) -> Iterator[str]:
    """Yield a notice if classes without names may be positions, as of labels (batch, frames, classes)."""
    shape, context = tuple(facts.batch.labels.shape[1:]), facts.context
    is_numbered = context.classes == tuple(map(str, range(len(context.classes))))
    if context.task != "multilabel" or len(shape) < 2 or not is_numbered:  # without labels, there is a placeholder
        return
    is_known = any(net.channels_last for net in facts.module.students)  # the user has thought of the order
    if not is_known and shape[-1] < min(shape[:-1]):
        sizes = " x ".join(map(str, shape[1:]))
        yield (
            f"the labels are taken for {shape[0]} classes at {sizes} positions; if the {shape[-1]} are the classes, "
            "move them to the second dimension, labels.movedim(-1, 1), and pass Net(..., channels_last=True) if the "
            "outputs have this order too; otherwise pass the names of the classes, TorchData(..., classes=[...])"
        )


def _frames_of_sequences(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term with a teacher that selects frames by labels, if another term computes CTC."""
    if not (facts.computes_ctc and facts.context.position_dims):
        return
    for term in facts.module.terms:
        if term.rows is not None and term.target is not None:
            yield (
                f"term {term.label!r} compares only the frames at which the padded labels have a class, but with CTC "
                "the labels are sequences, not one per frame: Masked(loss, mask=...) selects the frames of a sample, "
                "PerPosition(loss, ignore_index=None) all of them"
            )


def _unlabelled_positions(facts: Facts) -> Iterator[str]:
    if not facts.context.position_dims:
        return
    for term, inputs, _ in facts.checked_terms:
        if term.rows is not None and not len(as_tuple(inputs.student)[0]):
            # There is no advice for a loss that takes labels.
            advice = "" if term.extra_kwargs else "; PerPosition(loss, ignore_index=None) compares all positions"
            yield (
                f"term {term.label!r} compares no position of the first samples, because none of them has a label"
                f"{advice}"
            )


def _padding(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term that compares the padding, which the mask among the inputs leaves out.

    The mask of a waveform has an entry for each of its samples, of which a feature has one position for many.
    """
    mask = facts.batch.inputs.get("attention_mask") if isinstance(facts.batch.inputs, Mapping) else None
    if facts.problems or not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask > 0).all()):
        return
    kept = (mask > 0)[:, None]  # (batch, 1, tokens), of features
    masks = {3: kept, 4: kept[..., None] & kept[:, :, None]}  # of attention maps, (batch, heads, tokens, tokens)
    tensors = [tensor for tensor in nested_tensors(facts.batch.inputs) if tensor is not mask]
    is_waveform = any(tensor.is_floating_point() and tensor.shape == mask.shape for tensor in tensors)
    for term, _, inputs in facts.checked_terms:
        student = inputs.student
        if term.target is None or term.rows is not None or not isinstance(student, Tensor):
            continue
        if not _compares_tokens(term.loss) or _is_of_decoder(facts, term):
            continue
        of_side, frames = masks.get(student.ndim), student.shape[-1]
        is_of_frames = is_waveform and student.ndim == 3 and 1 < frames < mask.shape[1]
        if is_of_frames:
            of_side = nn.functional.adaptive_max_pool1d(kept.float(), frames) > 0  # without the padding alone
        if of_side is None or (len(student), *student.shape[2:]) != (len(mask), *of_side.shape[2:]):
            continue
        if facts.value_changes(term, inputs, torch.where(of_side, student, student + 1)):
            wrapper = "PerPosition" if term.student.is_output and not is_of_frames else "Masked"
            option = ", mask=...) with the mask of the frames" if is_of_frames else ")"
            yield (
                f"term {term.label!r} also compares the padding, {(mask <= 0).float().mean():.0%} of the "
                f"{'frames' if is_of_frames else 'tokens'} of the first samples; {wrapper}({describe_loss(term.loss)}"
                f"{option} leaves it out"
            )


def _padding_of_labels(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term that compares positions after the last label of a sample.

    If the inputs have a mask, `_padding` looks at features, except for those of a decoder, whose tokens are the labels.
    With CTC, labels are not of positions.
    """
    labels, context = facts.batch.labels, facts.context
    if facts.problems or context.task == "regression" or context.position_dims != 1 or facts.computes_ctc:
        return
    if not context.has_labels:
        return
    has_label = ~(is_ignored(labels, context.ignored_labels) if labels.ndim == 2 else labels.isnan().all(1))
    begun, continues = has_label.cummax(1).values, has_label.flip(1).cummax(1).values.flip(1)  # (batch, positions)
    padding = begun & ~continues
    # Gaps, such as those between masked tokens, are no padding, nor is the last token if labels are shifted by one.
    if bool((begun & continues & ~has_label).any()) or not padding[:, :-1].any():
        return
    has_mask = isinstance(facts.batch.inputs, Mapping) and "attention_mask" in facts.batch.inputs
    for term, inputs, whole in facts.checked_terms:
        student = whole.student
        if term.target is None or not isinstance(student, Tensor) or student.shape[2:] != padding.shape[1:]:
            continue
        if term.rows is not None:  # it leaves out positions without a label only if labels are class indices
            compares = len(as_tuple(inputs.student)[0]) == padding.numel()
        else:
            moved = torch.where(padding[:, None], student + 1, student)
            is_of_labels = _is_of_decoder(facts, term) or not has_mask
            compares = is_of_labels and _compares_tokens(term.loss) and facts.value_changes(term, whole, moved)
        if compares:
            yield (
                f"term {term.label!r} also compares positions after the last label, {padding.float().mean():.0%} of "
                f"those of the first samples; if they are padding, Masked({describe_loss(term.loss)}, mask=...) with "
                "the mask of the others leaves it out"
            )


def _masks_of_other_tokens(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term that selects tokens of a decoder by the mask of its encoder, or vice versa."""
    for term, _, _ in facts.checked_terms:
        mask, is_of_decoder = getattr(term.loss, "mask", None), _is_of_decoder(facts, term)
        if mask == "attention_mask" and is_of_decoder:
            yield (
                f"term {term.label!r} compares tokens of a decoder, but 'attention_mask' is the mask of the encoder's "
                "tokens; add the mask of the labels to the inputs, such as decoder_attention_mask = "
                "(labels >= 0).long(), and pass mask='decoder_attention_mask' to the loss"
            )
        elif mask == "decoder_attention_mask" and not is_of_decoder and _encoder_decoder(term.student_net) is not None:
            yield (
                f"term {term.label!r} compares tokens of an encoder, but 'decoder_attention_mask' is the mask of the "
                "decoder's tokens; pass mask='attention_mask' to the loss"
            )


def _inputs_of_decoders(facts: Facts) -> Iterator[str]:
    """Yield a notice for each net whose decoder reads the source text, as BART does, or begins with another token."""
    if not facts.context.has_labels or facts.context.position_dims != 1:
        return
    outputs = {name: output.output for name, output in facts.teacher_outputs.items()} | facts.student_outputs
    are_shifted = not any(_labels_of_decoders(facts.context, facts.batch, "the"))
    for net in nets_of([facts.stage]):
        model = _encoder_decoder(net)
        if net.name not in outputs or model is None:  # a net that fails has the same advice
            continue
        _, kwargs = net.view(facts.batch)
        # The decoder of a tagger reads the source text.
        writes = getattr(model.config, "vocab_size", None) in outputs[net.name].shape[1:]
        if writes and "input_ids" in kwargs and not kwargs.keys() & _READ_BY_DECODERS:
            yield (
                f"net {net.name!r} gets no decoder_input_ids, so its decoder reads input_ids instead of the labels; "
                "add the labels shifted to the right to the inputs, as DataCollatorForSeq2Seq(tokenizer, model=model) "
                "of transformers does"
            )
        tokens, start = kwargs.get(_OF_DECODER), getattr(model.config, "decoder_start_token_id", None)
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or start is None:
            continue
        if are_shifted and (tokens[:, 0] != start).all():
            yield (
                f"decoder_input_ids begin with the token {int(tokens[0, 0])}, but net {net.name!r} begins texts with "
                f"{start}, the decoder_start_token_id of its config; shift the labels to the right with {_SHIFT}"
            )


def _labels_of_decoders(context: BuildContext, batch: Batch, whose: str) -> Iterator[str]:
    """Yield a notice if most labels are not the token that a decoder reads next."""
    tokens = batch.inputs.get(_OF_DECODER) if isinstance(batch.inputs, Mapping) else None
    is_text = context.task == "multiclass" and context.position_dims == 1
    if not is_text or not isinstance(tokens, Tensor) or tokens.shape != batch.labels.shape:
        return
    has_label = (batch.labels >= 0) & ~is_ignored(batch.labels, context.ignored_labels)
    has_next = has_label[:, :-1] & has_label[:, 1:]
    share = (tokens[:, 1:].to(batch.labels.dtype) == batch.labels[:, :-1])[has_next].float().mean()
    if share < 0.5:  # NaN without two labels in a text; some models drop tokens of the decoder's inputs
        yield (
            f"{whose} decoder_input_ids are not the labels shifted to the right: only {share:.0%} of the labels are "
            "the token that the decoder reads next; if it predicts the next token, pass those of "
            f"{_SHIFT}, and do not shift the labels"
        )


def _is_of_decoder(facts: Facts, term: BoundTerm) -> bool:
    """Return whether the student side of a term has the tokens of a decoder, instead of those of its encoder."""
    model, inputs = _encoder_decoder(term.student_net), facts.batch.inputs
    if model is None or not isinstance(inputs, Mapping) or not inputs.keys() & _READ_BY_DECODERS:
        return False
    of_encoder = set(model.encoder.modules())
    return not any(tap.module in of_encoder for tap in taps_of(term.weighted.term.student))


def _encoder_decoder(net: Net[Any]) -> Any:
    """Return the model of transformers with an encoder and a decoder that is a network, or a part of it, or None."""
    if not isinstance(net.module, nn.Module):
        return None
    for part in net.module.modules():
        has_both = all(isinstance(getattr(part, name, None), nn.Module) for name in ("encoder", "decoder"))
        if has_both and getattr(getattr(part, "config", None), "is_encoder_decoder", False):
            return part
    return None


def _compares_tokens(loss: Loss) -> bool:
    """Return whether a loss may compare tokens one by one; most of kdkit's compare samples, or select tokens."""
    return isinstance(loss, Hint | Cosine | SquareHead | DistilHubert) or not is_of_kdkit(loss)


def _sequences(facts: Facts) -> Iterator[str]:
    """Yield notices about image tokens, (batch, channels, tokens), that a loss would resize as a sequence."""
    if not any(tensor.ndim == 4 for tensor in nested_tensors(facts.batch.inputs)):
        return
    for term, _, inputs in facts.checked_terms:
        if not isinstance(term.loss, FEATURE_LOSSES) or inputs.target is None:
            continue
        # Some losses take any number of taps.
        for student, target in zip(as_tuple(inputs.student), as_tuple(inputs.target), strict=False):
            if student.ndim == target.ndim == 3 and student.shape[-1] != target.shape[-1]:
                yield (
                    f"term {term.label!r} compares {student.shape[-1]} tokens with {target.shape[-1]} as a sequence, "
                    "by their order; if they are patches of an image, turn them into a map without class and register "
                    "tokens, with timm_tap(model, index) or Tap(layer, element=lambda tokens: "
                    "tokens[:, 1:].unflatten(1, (height, width)), channels_last=True)"
                )
                break


def _single_positions(facts: Facts) -> Iterator[str]:
    """Yield notices about features of one position, which are compared with each position of the target."""
    for term, _, inputs in facts.checked_terms:
        # These have one tap on each side.
        sides = (
            (inputs.student, inputs.target) if isinstance(term.loss, (Hint, SquareHead, Cosine, DistilHubert)) else ()
        )
        counts = [side.shape[2:].numel() for side in sides if isinstance(side, Tensor) and side.ndim > 2]
        if len(counts) == 2 and counts[0] == 1 < counts[1]:
            yield (
                f"term {term.label!r} compares the only position of the student with each of the {counts[1]} of the "
                "target, so it can only learn their mean; tap an earlier layer of the student, or average the target: "
                "Tap(layer, element=lambda features: features.flatten(2).mean(2))"
            )


def _terms_of_copied_labels(facts: Facts) -> Iterator[str]:
    """Yield a notice if labels are the input tokens: a language model would learn to repeat the token that it reads."""
    if not _are_inputs(facts.context, facts.batch):
        return
    for net, weighted in weighted_terms(facts.stage):
        term = weighted.term
        compares_outputs = isinstance(term.loss, nn.CrossEntropyLoss) or is_per_position(term.loss)
        is_of_outputs = term.student is None or isinstance(term.student, HeadTap)
        if isinstance(term, Truth) and is_of_outputs and compares_outputs:
            yield (
                f"the labels are the input tokens, so term {term.label!r} trains net {net.name!r} to repeat the token "
                f"that it reads; if it predicts the next token, {_shift(facts)}"
            )
            return


def _metrics_of_copied_labels(facts: Facts, validation: Batch) -> Iterator[str]:
    """Yield a notice if metrics compare outputs with the input tokens, even if the model shifts its own labels."""
    if _are_inputs(facts.context, facts.batch):
        if not any(_terms_of_copied_labels(facts)):
            yield (
                "the labels are the input tokens, and metrics compare the output at a token with its own label; if the "
                f"network predicts the next token, {_shift(facts)} (a model that computes its own loss shifts the "
                "labels among its inputs itself)"
            )
    elif _are_inputs(facts.context, validation):
        yield (
            "the labels of the validation data are its input tokens, unlike those of training, and metrics compare the "
            f"output at a token with its own label; if the network predicts the next token, {_shift(facts)}"
        )


def _metrics_of_sequences(facts: Facts, metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield a notice if a metric of kdkit chooses the best epoch, but the labels are sequences, as for CTC."""
    monitor = facts.stage.training.monitor or metrics[0].name
    monitored = [type(without_interval(metric)) for metric in metrics if metric.name == monitor]
    is_by_frame = any(kind.__module__.startswith("kdkit.metrics.") for kind in monitored)
    if facts.computes_ctc and facts.context.position_dims and is_by_frame:
        yield (
            f"metric {monitor!r}, which chooses the best epoch, compares each frame with a label, but labels of "
            "CTC are sequences, not one per frame; pass a metric of sequences, such as an error rate of your own: "
            "Recipe(metrics=(...,))"
        )


def _are_inputs(context: BuildContext, batch: Batch) -> bool:
    """Return whether the labels equal the input tokens at all positions with a label."""
    labels, inputs = batch.labels, batch.inputs
    if context.task != "multiclass" or context.position_dims != 1 or not context.ignored_labels:
        return False
    has_label = (labels >= 0) & ~is_ignored(labels, context.ignored_labels)
    if isinstance(inputs, Mapping):
        names = [name for name in inputs if name not in _LABELS]
        if _OF_DECODER in names:  # the inputs are the source text, which may equal the labels
            return False
        inputs = inputs["input_ids"] if "input_ids" in names else [inputs[name] for name in names]
    # Only the first tensor of a tuple: a model that computes a loss takes the labels as a later element.
    tokens = next(iter(nested_tensors(inputs)), None)
    if tokens is None or tokens.is_floating_point() or tokens.shape != labels.shape or not has_label.any():
        return False
    return bool((tokens.to(labels.dtype)[has_label] == labels[has_label]).all())  # torch cannot compare uint16


def _shift(facts: Facts) -> str:
    ignored = facts.context.ignored_labels
    return (
        "shift the labels of all splits, such as in the collate_fn of their DataLoaders: labels = "
        f"nn.functional.pad(labels[:, 1:], (0, 1), value={-100 if -100 in ignored else ignored[0]})"
    )
