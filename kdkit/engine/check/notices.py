"""Notices about a stage: settings that are valid but rarely intended."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import ceil

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.data.dataset import Data
from kdkit.data.groups import groups_by_split
from kdkit.data.labels import is_ignored
from kdkit.engine.check.facts import Facts
from kdkit.engine.check.output_problems import feature_teachers
from kdkit.engine.check.probabilities import kind_of_probabilities, takes_logits
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.engine.stage.train_state import build_balancer, optimized_parameters
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.errors import DataError
from kdkit.losses.base import BuildContext, Loss, describe_loss, is_of_kdkit, is_per_position, loss_name
from kdkit.losses.catalog import ON_FEATURES
from kdkit.losses.contrastive import CRD
from kdkit.losses.hints import DistilHubert, Hint, SquareHead
from kdkit.losses.sides import TensorOrTuple, as_tuple
from kdkit.losses.similarity import Cosine
from kdkit.metrics.base import Metric
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net, conflict_of_classes, conflict_of_inputs
from kdkit.nets.taps import HeadTap, Tap, moves_channels
from kdkit.nets.views import Images
from kdkit.recipe.objective import Truth
from kdkit.recipe.recipe import Stage, nets_of, weighted_terms
from kdkit.teachers.base import Teacher
from kdkit.utils.modules import preserve_buffers
from kdkit.utils.randomness import preserve_rng_state
from kdkit.utils.reprs import describe_names

# Words in the names of metrics of which lower values are better.
_ERRORS = {
    *("error", "errors", "loss", "logloss", "nll", "perplexity", "distance", "deviance", "wer", "cer", "eer"),
    *("mae", "mse", "rmse", "rmsle", "mape", "smape", "wape", "mase", "pinball", "crps", "brier", "ece", "fid"),
}
_LARGEST_SHARE = 0.2  # of the initial weights in the final average
_LABELS = ("labels", "label", "targets", "target")  # inputs of models that compute a loss themselves
# Losses that compare positions; CRD compares means over positions.
_ON_FEATURES = tuple(loss for loss in ON_FEATURES if isinstance(loss, type) and loss is not CRD)


def stage_notices(facts: Facts) -> Iterator[str]:
    """Yield notices about a stage, even if it has problems: a wrong order of dimensions may be their cause."""
    yield from _views(facts)
    yield from _channels(facts)
    yield from _class_orders(facts)
    yield from _classes_of_positions(facts)
    yield from _probabilities(facts)
    yield from _features_of_one_side(facts)
    yield from _moved_channels(facts)
    yield from _untrained_offset(facts)
    yield from _frames_of_sequences(facts)
    yield from _unlabelled_positions(facts)
    yield from _padding(facts)
    yield from _padding_of_labels(facts)
    yield from _sequences(facts)
    yield from _single_positions(facts)
    yield from _terms_of_copied_labels(facts)


def run_notices(facts: Facts, data: Data) -> Iterator[str]:
    """Yield notices about the training and the metrics of a stage without problems, in addition to those above."""
    yield from _metrics_of_copied_labels(facts)
    yield from _initial_weights_in_average(facts, data)
    yield from _learning_rate(facts)
    yield from _empty_groups(facts)
    yield from _untrained_nets(facts)
    yield from _half_precision_weights(facts)
    yield from filter(None, (conflict_of_inputs(net, data.preparation) for net in nets_of([facts.stage])))


def validation_notices(facts: Facts, validation: Batch) -> Iterator[str]:
    """Yield a notice if labels are the input tokens in the validation data only. validation: a tiny batch of it."""
    if _are_inputs(facts.context, validation) and not _are_inputs(facts.context, facts.batch):
        yield (
            "the labels of the validation data are its input tokens, unlike those of training, and metrics compare the "
            f"output at a token with its own label; if the network predicts the next token, {_shift(facts)}"
        )


def metric_notices(facts: Facts, metrics: Sequence[Metric]) -> Iterator[str]:
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


def _views(facts: Facts) -> Iterator[str]:
    for net in nets_of([facts.stage]):
        notice = net.view.notice(facts.batch.inputs) if isinstance(net.view, Images) else ""
        if notice:
            yield f"the view Images of net {net.name!r} {notice}"


def _channels(facts: Facts) -> Iterator[str]:
    for tap in facts.taps:
        if isinstance(tap, Tap) and tap.form.notice:
            yield tap.form.notice


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


def _class_orders(facts: Facts) -> Iterator[str]:
    """Yield notices about models of transformers whose class names are those of the data in another order.

    Also about students whose weights were trained on other classes.
    """
    for net in facts.stage.objectives:
        conflict = conflict_of_classes(net, facts.context.classes)
        if conflict:
            yield f"{conflict}; this is intended only if it is trained on other classes now"
    expected = [name.casefold() for name in facts.context.classes]
    for net in nets_of([facts.stage]) if facts.context.task != "regression" else ():
        labels = getattr(getattr(net.module, "config", None), "id2label", None)
        names = [str(labels[index]) for index in sorted(labels)] if isinstance(labels, dict) else []
        found = [name.casefold() for name in names]
        if net.classes is None and found != expected and sorted(found) == sorted(expected):
            yield (
                f"the config of net {net.name!r} has the classes {describe_names(names)}, but the data has another "
                f"order, {describe_names(facts.context.classes)}; if its outputs have the order of the config, pass "
                "Net(..., classes=[...]) with the names of the data in that order"
            )


def _probabilities(facts: Facts) -> Iterator[str]:
    """Yield notices about outputs that look like those of a softmax or sigmoid, but go into a loss on logits."""
    if facts.context.task == "regression":
        return
    losses: dict[str, str] = {}  # the first such loss by network name
    for term in facts.module.terms:
        if takes_logits(term.loss):
            sides = [term.student] if term.target is None else [term.student, term.target]
            names = [name for side in sides for name, tap in side.entries if tap is None]
            loss = getattr(term.loss, "__name__", None) or type(term.loss).__name__
            losses = {**dict.fromkeys(names, loss), **losses}
    # Features after a ReLU can also be in [0, 1].
    networks = {net.name for net in nets_of([facts.stage])} - {net.name for net in feature_teachers(facts)}
    functions = {teacher.name for teacher in facts.stage.teachers if _is_function_of_classes(facts, teacher)}
    outputs = {name: output.output for name, output in facts.teacher_outputs.items()} | facts.student_outputs
    for name, loss in losses.items():
        if name not in outputs.keys() & (networks | functions):
            continue
        kind = kind_of_probabilities(outputs[name], of_function=name in functions)
        if kind is not None:
            remedy = f"leave the {kind} out of the network"
            if name in functions:
                logits = {"softmax": "probabilities.clamp(min=1e-6).log()", "sigmoid": "probabilities.logit(eps=1e-6)"}
                remedy = f"return {logits[kind]}"
            yield (
                f"the outputs of net {name!r} look like probabilities, such as those of a {kind}, but {loss} takes "
                f"logits and would compute probabilities of probabilities; {remedy}"
            )


def _is_function_of_classes(facts: Facts, teacher: Teacher) -> bool:
    """Return whether a teacher is no network, but user code that returns outputs by class."""
    if isinstance(teacher, Net):
        return not isinstance(teacher.module, nn.Module) and teacher not in feature_teachers(facts)
    output = facts.teacher_outputs.get(teacher.name)
    is_of_kdkit = type(teacher).__module__.startswith("kdkit.")  # such as Past, which returns outputs of a student
    return output is not None and not is_of_kdkit and output.output.shape[1:2] == (len(facts.context.classes),)


def _features_of_one_side(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term that compares features of one network with the classes of the other.

    Features of the same shape are those of another head.
    """
    if facts.context.task == "regression":
        return
    embeddings = {net.name for net in feature_teachers(facts)}
    for term, inputs, _ in facts.checked_terms:
        if inputs.target is None or term.target is None or not isinstance(term.loss, _ON_FEATURES):
            continue
        if as_tuple(inputs.student)[0].shape == as_tuple(inputs.target)[0].shape:
            continue
        teacher = term.weighted.term.teacher
        if term.student.is_output != term.target.is_output and teacher is not None and teacher.name not in embeddings:
            side = "student" if term.student.is_output else "target"
            yield (
                f"term {term.label!r} compares features of one network with the outputs of the other; to compare "
                f"features of both, pass {side}=Tap(...)"
            )


def _moved_channels(facts: Facts) -> Iterator[str]:
    """Yield a notice for each tap whose dimensions were moved, although its labels have their original order."""
    shape = facts.batch.labels.shape
    for term, inputs, _ in facts.checked_terms if facts.context.task == "regression" else ():
        tap = term.weighted.term.student
        student = as_tuple(inputs.student)[0]
        is_moved = term.target is None and moves_channels(tap)
        # If only one order has the shape of the labels, it is the right one.
        if is_moved and student.shape == student.movedim(1, -1).shape == shape:
            yield (
                f"term {term.label!r}: the last dimension of its {tap!r} was taken as channels, and moved, so it is "
                f"compared with other entries of the labels {tuple(shape)}; pass Tap(..., channels_last=False)"
            )


def _untrained_offset(facts: Facts) -> Iterator[str]:
    """Yield a notice for each student whose probabilities of labels no term trains."""
    if facts.context.task != "multilabel" or facts.problems:
        return
    for net in facts.module.students:
        terms = [
            checked
            for checked in facts.checked_terms
            if checked.term.student_net is net and checked.term.weighted.has_weight
        ]
        on_outputs = [checked.term for checked in terms if checked.term.student.is_output]
        if on_outputs and not any(_sees_offset(facts, checked.term, checked.inputs) for checked in terms):
            yield (
                f"the probability of a label of net {net.name!r} is not trained: {loss_name(on_outputs[0].loss)} "
                "compares classes with each other, as if a sample had only one, and stays the same if all outputs of a "
                "sample are larger; add Truth(nn.BCEWithLogitsLoss()), or use a PerLabel... loss"
            )


def _frames_of_sequences(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term with a teacher that selects frames by labels, if another term computes CTC."""
    for term in facts.module.terms if facts.computes_ctc and facts.context.position_dims else ():
        if term.rows is not None and term.target is not None:
            yield (
                f"term {term.label!r} compares only the frames at which the padded labels have a class, but with CTC "
                "the labels are sequences, not one per frame: Masked(loss, mask=...) selects the frames of a sample, "
                "PerPosition(loss, ignore_index=None) all of them"
            )


def _unlabelled_positions(facts: Facts) -> Iterator[str]:
    for term, inputs, _ in facts.checked_terms if facts.context.position_dims else ():
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
        if not _compares_tokens(term.loss):
            continue
        of_side, frames = masks.get(student.ndim), student.shape[-1]
        is_of_frames = is_waveform and student.ndim == 3 and 1 < frames < mask.shape[1]
        if is_of_frames:
            of_side = nn.functional.adaptive_max_pool1d(kept.float(), frames) > 0  # without the padding alone
        if of_side is None or (len(student), *student.shape[2:]) != (len(mask), *of_side.shape[2:]):
            continue
        if _changes(facts, term, inputs, torch.where(of_side, student, student + 1)):
            wrapper = "PerPosition" if term.student.is_output and not is_of_frames else "Masked"
            option = ", mask=...) with the mask of the frames" if is_of_frames else ")"
            yield (
                f"term {term.label!r} also compares the padding, {(mask <= 0).float().mean():.0%} of the "
                f"{'frames' if is_of_frames else 'tokens'} of the first samples; {wrapper}({describe_loss(term.loss)}"
                f"{option} leaves it out"
            )


def _padding_of_labels(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term that compares positions after the last label of a sample.

    If the inputs have a mask, `_padding` looks at features. With CTC, labels are not of positions.
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
            compares = not has_mask and _compares_tokens(term.loss) and _changes(facts, term, whole, moved)
        if compares:
            yield (
                f"term {term.label!r} also compares positions after the last label, {padding.float().mean():.0%} of "
                f"those of the first samples; if they are padding, Masked({describe_loss(term.loss)}, mask=...) with "
                "the mask of the others leaves it out"
            )


def _compares_tokens(loss: Loss) -> bool:
    """Return whether a loss may compare tokens one by one; most of kdkit's compare samples, or select tokens."""
    return isinstance(loss, Hint | Cosine | SquareHead | DistilHubert) or not is_of_kdkit(loss)


def _sequences(facts: Facts) -> Iterator[str]:
    """Yield notices about image tokens, (batch, channels, tokens), that a loss would resize as a sequence."""
    has_images = any(tensor.ndim == 4 for tensor in nested_tensors(facts.batch.inputs))
    for term, _, inputs in facts.checked_terms if has_images else ():
        if not isinstance(term.loss, _ON_FEATURES) or inputs.target is None:
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


def _metrics_of_copied_labels(facts: Facts) -> Iterator[str]:
    """Yield a notice if metrics compare outputs with the input tokens, even if the model shifts its own labels."""
    if _are_inputs(facts.context, facts.batch) and not any(_terms_of_copied_labels(facts)):
        yield (
            "the labels are the input tokens, and metrics compare the output at a token with its own label; if the "
            f"network predicts the next token, {_shift(facts)} (a model that computes its own loss shifts the labels "
            "among its inputs itself)"
        )


def _initial_weights_in_average(facts: Facts, data: Data) -> Iterator[str]:
    training = facts.stage.training
    if training.ema is None:
        return
    with suppress(DataError):  # a stream without a length, which is reported as a problem
        updates = training.epochs * ceil(batches_per_epoch(data.train, training) / training.accumulate_steps)
        share = training.ema.decay**updates
        if share > _LARGEST_SHARE:
            yield (
                f"stage {facts.stage.name!r} has {updates:,} updates: with a decay of {training.ema.decay:g}, "
                f"{share:.0%} of the average of its weights still comes from the initial ones at the end; pass a "
                "smaller decay, AverageWeights(decay=...)"
            )


def _learning_rate(facts: Facts) -> Iterator[str]:
    optimizer = facts.stage.training.optimizer
    if optimizer.options.get("lr") == 0 and optimizer.groups is None:
        yield f"stage {facts.stage.name!r} has a learning rate of 0, so nothing is trained"


def _empty_groups(facts: Facts) -> Iterator[str]:
    """Yield a notice if a parameter group is empty, for example because its function looks for other names."""
    training = facts.stage.training
    if training.optimizer.groups is None or facts.stage.baseline_of:  # a baseline lacks the losses of its student
        return
    named = optimized_parameters(facts.module, build_balancer(training, facts.module))
    sizes = [len(group["params"]) for group in training.optimizer.build(named).param_groups]
    if 0 in sizes:
        yield (
            f"stage {facts.stage.name!r}: parameter group {sizes.index(0) + 1} of {len(sizes)} of its optimizer is "
            f"empty; the names of parameters begin with the name of their net, such as {named[0][0]!r}"
        )


def _untrained_nets(facts: Facts) -> Iterator[str]:
    stage = facts.stage
    trained = {net for net, weighted in weighted_terms(stage) if weighted.has_weight}
    idle = [net for net in stage.objectives if net not in trained]
    for net in idle:
        yield f"stage {stage.name!r}: every term of net {net.name!r} has the weight 0, so nothing trains it"
    if facts.untrained_outputs and stage.training.keep is None and not idle:
        nets = describe_names(repr(net.name) for net in stage.objectives)
        yield (
            f"stage {stage.name!r} keeps its last epoch instead of the best one: its terms do not train the outputs of "
            f"{nets}, so their metrics mean nothing; to choose by the metric anyway, pass Training(keep='best')"
        )


def _half_precision_weights(facts: Facts) -> Iterator[str]:
    for net in facts.stage.objectives:
        trained = [parameter.dtype for parameter in net.network.parameters() if parameter.requires_grad]
        dtype = next((dtype for dtype in trained if dtype in (torch.float16, torch.bfloat16)), None)
        if dtype is not None:
            yield (
                f"net {net.name!r} trains weights in {str(dtype).removeprefix('torch.')}, which round off a change of "
                f"less than 1/{round(2 / torch.finfo(dtype).eps)} of a weight, unless the optimizer compensates for "
                "it; to train in float32 and compute in half precision, convert the network with module.float() and "
                "pass precision='bf16'"
            )


def direction_notices(metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield notices about user-defined metrics with the name of an error, which do not declare if lower is better."""
    for metric in map(without_interval, metrics):
        words = {*re.split("[^a-z]+", metric.name.lower())}
        if words & _ERRORS and not hasattr(metric, "lower_is_better"):
            yield (
                f"higher values of metric {metric.name!r} count as better; if it is an error, set its attribute "
                "lower_is_better = True, otherwise to False"
            )


def group_notices(data: Data) -> Iterator[str]:
    """Yield notices about groups of samples, such as patients, that are in the training data and in another split."""
    try:
        groups = groups_by_split(data)
    except DataError:  # a problem
        return
    # In torch, because np.unique takes a second for a million of them.
    units = {name: torch.unique(torch.from_numpy(array)) for name, array in groups.items()}
    train = units.pop("train", torch.empty(0, dtype=torch.int64))
    for name, of_split in units.items():
        if shared := int(torch.isin(of_split, train, assume_unique=True).sum()):
            yield (
                f"{shared:,} of the {len(of_split):,} groups of the {name} data are in the train data too: if they "
                "are patients or the like, metrics are too optimistic, so divide the data by group; otherwise "
                "number the groups of all splits together"
            )


def shared_net_notices(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield notices about networks that a later stage changes by training another network with shared parameters."""
    for net in nets_of(stages):
        if not isinstance(net.module, nn.Module):
            continue
        parameters = {id(parameter) for parameter in net.module.parameters()}
        # Only stages after the last one that trains the network matter; for a teacher that no stage trains, all do.
        last = max((index for index, stage in enumerate(stages) if net in stage.objectives), default=-1)
        changing = next(
            (
                (stage.name, trained.name)
                for stage in stages[last + 1 :]
                if net not in stage.teachers  # the check refuses teachers whose outputs would change
                for trained in stage.objectives
                if any(id(part) in parameters and part.requires_grad for part in trained.network.parameters())
            ),
            None,
        )
        if changing is not None:
            yield (
                f"stage {changing[0]!r} changes net {net.name!r}, which shares parameters with net {changing[1]!r}: "
                f"its metrics and its outputs as a teacher are then those of the changed weights; if {net.name!r} must "
                f"stay as it is, give net {changing[1]!r} a copy (copy.deepcopy)"
            )


def _are_inputs(context: BuildContext, batch: Batch) -> bool:
    """Return whether the labels equal the input tokens at all positions with a label."""
    labels, inputs = batch.labels, batch.inputs
    if context.task != "multiclass" or context.position_dims != 1 or not context.ignored_labels:
        return False
    has_label = (labels >= 0) & ~is_ignored(labels, context.ignored_labels)
    if isinstance(inputs, Mapping):
        names = [name for name in inputs if name not in _LABELS]
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


def _sees_offset(facts: Facts, term: BoundTerm, inputs: TermInputs) -> bool:
    """Return whether the value of a term changes if all outputs of a sample grow by the same number.

    A softmax over the classes removes this offset, but the probability of a label by itself depends on it.
    """
    student = inputs.student
    if not isinstance(student, Tensor) or student.ndim != 2 or student.shape[1] < 2:
        return True
    offsets = torch.linspace(1, 2, len(student), device=student.device, dtype=student.dtype)[:, None]
    return _changes(facts, term, inputs, student + offsets)


def _changes(facts: Facts, term: BoundTerm, inputs: TermInputs, other: Tensor) -> bool:
    """Return whether the value of a term changes if its student side is another one."""
    loss, target = term.loss, inputs.target_or_labels()
    kwargs = term.loss_kwargs(inputs, facts.module.progress)

    def value(student: TensorOrTuple) -> Tensor:
        with preserve_rng_state(cuda=False), preserve_buffers([loss] if isinstance(loss, nn.Module) else []):
            result: Tensor = loss(student, target, **kwargs)
        return result

    try:
        with torch.no_grad():
            return not torch.allclose(value(inputs.student), value(other), rtol=1e-3, atol=1e-6)
    except Exception:  # the loss may be user-defined, or only take probabilities
        return True
