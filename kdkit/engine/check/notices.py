"""Notices about a stage: settings that are valid but rarely intended."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import ceil

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, Split, reported_split
from kdkit.data.groups import groups_by_split
from kdkit.data.sample_names import name_digests
from kdkit.engine.check.facts import Facts
from kdkit.engine.check.output_problems import feature_teachers
from kdkit.engine.check.position_notices import FEATURE_LOSSES, position_metric_notices, position_notices
from kdkit.engine.check.probabilities import kind_of_probabilities, takes_logits
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.engine.stage.train_state import build_balancer, optimized_parameters
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.errors import DataError
from kdkit.losses.base import is_of_kdkit, loss_name, unwrapped
from kdkit.losses.sides import as_tuple
from kdkit.metrics.base import Metric
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net, conflict_of_classes, conflict_of_inputs
from kdkit.nets.taps import Tap, moves_channels
from kdkit.nets.views import Images
from kdkit.recipe.recipe import Recipe, Stage, nets_of, weighted_terms
from kdkit.teachers.base import Teacher
from kdkit.utils.reprs import describe_names, format_bytes

# Words in the names of metrics of which lower values are better.
_ERRORS = {
    *("error", "errors", "loss", "logloss", "nll", "perplexity", "distance", "deviance", "wer", "cer", "eer"),
    *("mae", "mse", "rmse", "rmsle", "mape", "smape", "wape", "mase", "pinball", "crps", "brier", "ece", "fid"),
}
_FEW_GROUPS = 10  # below, intervals miss the true value more than twice as often as they should
_LARGEST_SHARE = 0.2  # of the initial weights in the final average
_LARGE_OUTPUTS = 4 * 10**9  # bytes
_PRUNED_SHARE = 0.05  # of the weights of linear layers and convolutions


def stage_notices(facts: Facts) -> Iterator[str]:
    """Yield notices about a stage, even if it has problems: a wrong order of dimensions may be their cause."""
    yield from _views(facts)
    yield from _channels(facts)
    yield from _class_orders(facts)
    yield from _probabilities(facts)
    yield from _features_of_one_side(facts)
    yield from _moved_channels(facts)
    yield from _untrained_offset(facts)
    yield from _left_out_samples(facts)
    yield from _evaluated_norms(facts)
    yield from _pruned_weights(facts)
    yield from position_notices(facts)


def run_notices(facts: Facts, recipe: Recipe, validation: Batch) -> Iterator[str]:
    """Yield notices about the training and the metrics of a stage without problems, in addition to those above.

    validation: a tiny batch of the validation data.
    """
    yield from position_metric_notices(facts, recipe.metrics, validation)
    yield from _initial_weights_in_average(facts, recipe.data)
    yield from _learning_rate(facts)
    yield from _empty_groups(facts)
    yield from _untrained_nets(facts)
    yield from _half_precision_weights(facts)
    yield from _large_outputs(facts, recipe.data)
    yield from filter(None, (conflict_of_inputs(net, recipe.data.preparation) for net in nets_of([facts.stage])))


def recipe_notices(recipe: Recipe) -> Iterator[str]:
    """Yield notices about a recipe that need no network to run."""
    yield from _shared_nets(recipe.stages)
    yield from _directions(recipe.metrics)
    yield from _groups_in_two_splits(recipe.data)
    yield from _few_groups(recipe.data)
    yield from overlap_notices(recipe)


def _large_outputs(facts: Facts, data: Data) -> Iterator[str]:
    """Yield a notice if the scores of all classes, such as of items or identities, take much memory in evaluations."""
    if facts.context.task == "regression" or facts.context.position_dims:
        return
    for name, split in (("validation", data.validation), ("test", data.test)):
        count = len(split) if isinstance(split, Split) else 0
        size = 4 * count * len(data.classes)
        if size > _LARGE_OUTPUTS:
            yield (
                f"the outputs of a net for the {count:,} samples and {len(data.classes):,} classes of the {name} "
                f"data take {format_bytes(size)}, in memory and in the run folder; to need less, pass fewer samples, "
                "or return embeddings in evaluations, with a metric that has reduce_network"
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


def _class_orders(facts: Facts) -> Iterator[str]:
    """Yield notices about models of transformers whose class names are those of the data in another order.

    Also about students whose weights were trained on other classes.
    """
    for net in facts.stage.objectives:
        conflict = conflict_of_classes(net, facts.context.classes)
        if conflict:
            yield f"{conflict}; this is intended only if it is trained on other classes now"
    if facts.context.task == "regression":
        return
    expected = [name.casefold() for name in facts.context.classes]
    for net in nets_of([facts.stage]):
        labels = getattr(getattr(net.module, "config", None), "id2label", None)
        names = [str(labels[index]) for index in sorted(labels)] if isinstance(labels, dict) else []
        classes = [name.casefold() for name in names]
        if net.classes is None and classes != expected and sorted(classes) == sorted(expected):
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
        if inputs.target is None or term.target is None or not isinstance(term.loss, FEATURE_LOSSES):
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
    if facts.context.task != "regression":
        return
    shape = facts.batch.labels.shape
    for term, inputs, _ in facts.checked_terms:
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


def _left_out_samples(facts: Facts) -> Iterator[str]:
    """Yield terms that leave out samples without a label, although they compare the student with a teacher."""
    for term in facts.module.terms:
        if term.target is None or term.rows is None or facts.context.position_dims:
            continue
        advice = "a loss without labels, such as SoftTargets(), compares all samples"
        if not is_of_kdkit(unwrapped(term.loss)):
            label = " or ".join(map(str, term.ignored))
            advice = f"to compare all samples, set its attribute accepts_unknown = True; it then gets the label {label}"
        reason = f"because {loss_name(term.loss)} takes labels"
        yield f"term {term.label!r} leaves out samples without a label, {reason}; {advice}"


def _evaluated_norms(facts: Facts) -> Iterator[str]:
    for net, names in facts.evaluated_norms.items():
        if names:
            yield (
                f"batch norms of net {net!r}, such as {names[0]!r}, are in eval mode, but will be in training mode, "
                "which changes their statistics; to keep these, freeze the modules: requires_grad_(False)"
            )


def _pruned_weights(facts: Facts) -> Iterator[str]:
    """Yield a notice for each student that trains weights that were pruned, without the masks of these."""
    if facts.problems:
        return
    for net in facts.module.students:
        # Of a weight with a mask, the layer computes `weight`, and its parameter has another name.
        layers = [
            (path, layer._parameters.get("weight"))
            for path, layer in net.network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ]
        weights = {path: weight for path, weight in layers if weight is not None and weight.requires_grad}
        if not weights or any(map(is_traceable_wrapper_subclass, weights.values())):
            continue
        counts = torch.stack([(weight == 0).sum() for weight in weights.values()]).tolist()
        # All weights of a layer may be 0 at first, such as those of an adapter.
        zeros = {
            path: count for (path, weight), count in zip(weights.items(), counts, strict=True) if count < weight.numel()
        }
        share = sum(zeros.values()) / sum(weight.numel() for weight in weights.values())
        if share >= _PRUNED_SHARE:
            most = max(zeros, key=zeros.__getitem__)
            yield (
                f"{share:.0%} of the weights of the layers of net {net.name!r} are 0, such as in {most!r}: if they are "
                "pruned, training fills them again; keep the masks of torch.nn.utils.prune until the run has ended, "
                "and call prune.remove then"
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


def _directions(metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield notices about user-defined metrics with the name of an error, which do not declare if lower is better."""
    for metric in map(without_interval, metrics):
        words = {*re.split("[^a-z]+", metric.name.lower())}
        if words & _ERRORS and not hasattr(metric, "lower_is_better"):
            yield (
                f"higher values of metric {metric.name!r} count as better; if it is an error, set its attribute "
                "lower_is_better = True, otherwise to False"
            )


def _few_groups(data: Data) -> Iterator[str]:
    """Yield a notice if a bootstrap over the groups of the reported split, such as patients, has too few of them."""
    name, _ = reported_split(data)
    try:
        groups = groups_by_split(data).get(name)
    except DataError:  # a problem
        return
    count = 0 if groups is None else len(torch.unique(torch.from_numpy(groups)))
    if 1 < count < _FEW_GROUPS:
        yield (
            f"the {name} data have {count} groups, and intervals over so few are too narrow, so verdicts are too "
            "certain: of 95 % intervals of an accuracy, 90 % contain the true value with 10 groups, 84 % with 5, and "
            f"72 % with 3; put more groups into the {name} data, or evaluate all of them by cross-validation"
        )


def _groups_in_two_splits(data: Data) -> Iterator[str]:
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


def overlap_notices(recipe: Recipe) -> Iterator[str]:
    """Yield notices about nets whose weights an earlier run trained on samples that metrics are now computed on."""
    nets = [net for net in nets_of(recipe.stages) if len(net.loaded.training_names)]
    name, split = reported_split(recipe.data)
    names = name_digests(split) if nets else torch.empty(0)
    for net in nets:
        if shared := int(torch.isin(names, net.loaded.training_names).sum()):
            yield (
                f"the weights of net {net.name!r} were trained on samples with the names of {shared:,} of the "
                f"{len(names):,} {name} samples; if they are the same samples, metrics of this net, and of those that "
                "learn from it, are too optimistic: choose weights that were trained on the same fold"
            )


def _shared_nets(stages: Sequence[Stage]) -> Iterator[str]:
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


def _sees_offset(facts: Facts, term: BoundTerm, inputs: TermInputs) -> bool:
    """Return whether the value of a term changes if all outputs of a sample grow by the same number.

    A softmax over the classes removes this offset, but the probability of a label by itself depends on it.
    """
    student = inputs.student
    if not isinstance(student, Tensor) or student.ndim != 2 or student.shape[1] < 2:
        return True
    offsets = torch.linspace(1, 2, len(student), device=student.device, dtype=student.dtype)[:, None]
    return facts.value_changes(term, inputs, student + offsets)
