"""Problems of a recipe that are visible without running a network."""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.data.dataset import Data, Split, optional_member
from kdkit.data.labels import without_ignored
from kdkit.engine.training_batches import batches_per_epoch
from kdkit.errors import KdkitError, RecipeError, did_you_mean
from kdkit.losses.base import BuildContext, accepts_unknown, extra_kwargs_of, requirements_of
from kdkit.metrics.base import Predictions
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, Term, Truth, as_objective, taps_of
from kdkit.recipe.recipe import Recipe, Stage, nets_of
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer

Problems = Iterator[str]

# The end of messages about losses and teachers that look samples up.
_NO_IDS = (
    "and a user-defined DataLoader has none, and neither has a batch that batch_transform may have mixed; pass the "
    "Dataset of the DataLoader instead, without batch_transform"
)


def recipe_problems(recipe: Recipe, stages: Sequence[Stage]) -> Problems:
    """Yield the problems of a recipe as a whole: names, the order of stages, metrics, and cache settings."""
    return _RecipeChecks(recipe, stages).problems()


def stage_problems(stage: Stage, context: BuildContext) -> Problems:
    """Yield the problems of one stage: its networks, its terms, and its optimizer."""
    return _StageChecks(stage, context).problems()


def require_compilable(stages: Iterable[Stage]) -> None:
    """Raise RecipeError if a stage balances by the gradient of each term, which a compiled module does not have."""
    for stage in stages:
        balancing = stage.training.balancing
        if balancing.needs_separate_gradients:
            raise RecipeError(
                f"stage {stage.name!r}: {type(balancing).__name__} needs the gradient of each term, but a compiled "
                "module has one backward pass for all terms; run without compile, or balance by WeightedSum or "
                "UncertaintyWeighting"
            )


class _RecipeChecks:
    """The checks of a recipe as a whole. Each method yields the problems of one kind."""

    def __init__(self, recipe: Recipe, stages: Sequence[Stage]) -> None:
        self.recipe = recipe
        self.stages = stages
        self.position_dims: int = optional_member(recipe.data, Data, "position_dims")

    def problems(self) -> Problems:
        """Yield all problems."""
        data = self.recipe.data
        for name, count in Counter(data.classes).items():
            if count > 1:
                yield f"{count} classes of the data are called {name!r}, but a table of classes needs distinct names"
        if not self.stages:
            yield f"{type(self.recipe.schedule).__name__} gives no stages: there is nothing to train"
        yield from self._duplicate_names()
        yield from self._baselines_of_no_stage()
        yield from self._untrained_teachers()
        yield from self._unknown_monitors()
        yield from self._shared_losses()
        yield from self._metric_problems()
        yield from self._epochs_without_end()
        yield from self._undefined_monitors()
        yield from self._metrics_of_unknown_labels()
        yield from self._losses_of_ignored_labels()
        yield from self._binary_losses_of_numbers()
        top = self.recipe.teacher_cache.top
        if top is not None and (data.task != "multiclass" or self.position_dims):
            labels = "has labels per position" if self.position_dims else f"is {data.task}"
            yield (
                f"CacheSettings(top={top}) keeps the largest outputs of each sample, which needs one class per sample, "
                f"and this data {labels}; leave out top"
            )

    def _duplicate_names(self) -> Problems:
        # Files are named after networks and stages, so these are unique in a recipe; other teachers only in their
        # stage.
        for name, count in Counter(net.name for net in nets_of(self.stages)).items():
            if count > 1:
                yield f"{count} nets are called {name!r}; give each net a unique name"
        for stage in self.stages:
            matched = {*nets_of([stage]), *(match.teacher for match in stage.matches)}
            for name, count in Counter(teacher.name for teacher in matched).items():
                if count > 1 and any(teacher.name == name and not isinstance(teacher, Net) for teacher in matched):
                    yield (
                        f"stage {stage.name!r}: {count} different teachers are called {name!r}, for example with "
                        "different options; use the same object in each term, or give them unique names"
                    )
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                yield f"{count} stages are called {name!r}; give each stage a unique name: Stage(..., name=...)"

    def _baselines_of_no_stage(self) -> Problems:
        for index, stage in enumerate(self.stages):
            earlier = [other.name for other in self.stages[:index]]
            if stage.baseline_of and stage.baseline_of not in earlier:
                hint = did_you_mean(stage.baseline_of, earlier) if earlier else "it is the first one"
                yield f"stage {stage.name!r}: no stage before it is called {stage.baseline_of!r}; {hint}"

    def _untrained_teachers(self) -> Problems:
        trained: set[Net[Any]] = {net for net in nets_of(self.stages) if net.trained}
        for stage in self.stages:
            for teacher in stage.teachers:
                if isinstance(teacher, Net) and teacher not in trained and teacher not in stage.objectives:
                    weights = "only a part of its weights" if teacher.weights_note else "no weights"
                    yield (
                        f"stage {stage.name!r}: net {teacher.name!r} teaches, but it is not trained in an earlier "
                        f"stage and has {weights}; pass Net(..., weights=FILE), or trained=True if its module is "
                        "trained already"
                    )
            trained |= set(stage.objectives)

    def _unknown_monitors(self) -> Problems:
        names = [metric.name for metric in self.recipe.metrics]
        for stage in self.stages:
            monitor = stage.training.monitor
            if monitor is not None and monitor not in names:
                hint = did_you_mean(monitor, names)
                yield f"stage {stage.name!r}: {monitor!r} is not among the recipe's metrics; {hint}"

    def _shared_losses(self) -> Problems:
        labels: dict[int, str] = {}  # of the first term that uses a loss, by identity of the loss
        objectives = [objective for stage in self.stages for objective in stage.objectives.values()]
        for term in (weighted.term for objective in objectives for weighted in as_objective(objective)):
            loss = term.loss
            if isinstance(loss, nn.Module) and (hasattr(loss, "build") or any(True for _ in loss.parameters())):
                if id(loss) in labels:
                    yield (
                        f"terms {labels[id(loss)]!r} and {term.label!r} share one {type(loss).__name__}, which has "
                        "parameters; create one for each term"
                    )
                labels[id(loss)] = term.label

    def _metric_problems(self) -> Problems:
        """Compute every metric for random outputs, so that one that does not fit is refused before training."""
        if self.position_dims:
            for metric in self.recipe.metrics:
                if not getattr(without_interval(metric), "accepts_positions", False):
                    yield (
                        f"metric {metric.name!r}: labels of this data are per position, and it takes one per sample; "
                        "use MeanIoU, Accuracy or F1, or a metric with an attribute accepts_positions = True"
                    )
            return
        classes = tuple(self.recipe.data.classes)
        random = np.random.default_rng(0)
        outputs = random.standard_normal((2 * len(classes) + 2, len(classes)))
        targets = np.arange(len(outputs)) % len(classes)
        labels: NDArray[Any] = targets if self.recipe.data.task == "multiclass" else np.eye(len(classes))[targets]
        predictions = Predictions(labels=labels, outputs=outputs, classes=classes)
        for metric in self.recipe.metrics:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # random outputs may be degenerate, real ones need not be
                    metric.fit(predictions).compute(predictions)
            except Exception as error:  # a user-defined metric may raise anything
                reason = str(error) if isinstance(error, KdkitError) else f"{type(error).__name__}: {error}"
                yield f"metric {metric.name!r} does not fit this data ({self.recipe.data.task}): {reason}"

    def _epochs_without_end(self) -> Problems:
        for stage in self.stages:
            try:
                batches_per_epoch(self.recipe.data.train, stage.training)
            except KdkitError as error:
                yield f"stage {stage.name!r}: {error}"

    def _undefined_monitors(self) -> Problems:
        """Compute the monitored metrics for the labels of the validation split, if these are visible and all alike."""
        data = self.recipe.data
        truth = optional_member(data.validation, Split, "labels")
        if not isinstance(truth, Tensor) or not truth.ndim or not len(truth):
            return
        labels = without_ignored(truth, optional_member(data, Data, "ignored_labels")).cpu().numpy()
        if data.task == "multiclass" and labels.ndim == 2:  # soft labels
            labels = labels.argmax(1)
        # With two values in one column, each class of a macro average may be undefined, but not all of them.
        if not len(labels) or (labels != labels[0]).any():
            return
        outputs = np.random.default_rng(0).standard_normal((len(labels), len(data.classes)))
        predictions = Predictions(labels=labels, outputs=outputs, classes=tuple(data.classes))
        metrics = {metric.name: without_interval(metric) for metric in self.recipe.metrics}
        for stage in self.stages:
            monitor = stage.training.monitor or next(iter(metrics))
            if stage.training.keep == "last" or monitor not in metrics:
                continue
            with warnings.catch_warnings(), contextlib.suppress(Exception):  # see `_metric_problems`
                warnings.simplefilter("ignore")
                result = metrics[monitor].fit(predictions).compute(predictions)
                if math.isnan(result.value):
                    yield (
                        f"stage {stage.name!r}: {monitor!r} is undefined on the validation split"
                        f"{f' ({result.note})' if result.note else ''}, so it cannot choose the best epoch; validate "
                        "on other samples, or choose another metric, Training(monitor=...), or the last epoch, "
                        "Training(keep='last')"
                    )

    def _metrics_of_unknown_labels(self) -> Problems:
        """Check that labels that may be unknown reach only metrics that leave them out."""
        if not optional_member(self.recipe.data, Data, "has_unknown"):
            return
        for metric in self.recipe.metrics:
            if not getattr(without_interval(metric), "accepts_unknown", False):
                yield (
                    f"metric {metric.name!r}: labels of this data may be unknown, and it does not leave them out; a "
                    "metric that does has an attribute accepts_unknown = True"
                )

    def _losses_of_ignored_labels(self) -> Problems:
        """Check that losses with an `ignore_index` leave out the labels that stand for none."""
        ignored = optional_member(self.recipe.data, Data, "ignored_labels")
        for objective in (objective for stage in self.stages for objective in stage.objectives.values()):
            for term in (weighted.term for weighted in as_objective(objective)):
                index = getattr(term.loss, "ignore_index", None)
                if ignored and isinstance(index, int) and index not in ignored:
                    yield (
                        f"term {term.label!r}: {type(term.loss).__name__} leaves out the label {index}, and this data "
                        f"has {ignored[0]} for no label; pass ignore_index={ignored[0]} to the loss"
                    )

    def _binary_losses_of_numbers(self) -> Problems:
        """Check that binary cross-entropy is not trained on labels beyond [0, 1], which have no probability."""
        data = self.recipe.data
        labels = optional_member(data.train, Split, "labels") if data.task == "regression" else None
        if not isinstance(labels, Tensor) or not labels.numel():
            return
        least, most = (label.item() for label in labels.aminmax())
        for objective in (objective for stage in self.stages for objective in stage.objectives.values()):
            for term in (weighted.term for weighted in as_objective(objective)):
                if _is_binary(term) and (least < 0 or most > 1):
                    yield (
                        f"term {term.label!r}: {type(term.loss).__name__} takes labels in [0, 1], and those of the "
                        f"training data are numbers from {least:g} to {most:g}; correct them, or use a loss on numbers"
                    )


def binary_loss_of(recipe: Recipe, stage: Stage) -> str:
    """Return the name of a binary cross-entropy that is trained on labels that are numbers; "" if there is none.

    Labels that cannot be seen before training, such as 0, 1 and 2 by class, may be taken for numbers.
    """
    if recipe.data.task == "regression":
        for objective in stage.objectives.values():
            for term in (weighted.term for weighted in as_objective(objective)):
                if _is_binary(term):
                    return type(term.loss).__name__
    return ""


def _is_binary(term: Term) -> bool:
    return isinstance(term, Truth) and isinstance(term.loss, nn.BCEWithLogitsLoss | nn.BCELoss)


class _StageChecks:
    """The checks of one stage. Each method yields the problems of one kind."""

    def __init__(self, stage: Stage, context: BuildContext) -> None:
        self.stage = stage
        self.context = context

    def problems(self) -> Problems:
        """Yield all problems."""
        problems = [*self._net_and_term_problems()]
        # An optimizer of networks without trainable parameters would raise as well, with a message that helps less.
        yield from problems or self._optimizer_problems()

    def _net_and_term_problems(self) -> Problems:
        for net, objective in self.stage.objectives.items():
            if not isinstance(net.module, nn.Module):
                yield f"net {net.name!r} is a plain callable: it can teach, but not be trained"
            elif net.device is not None:
                yield f"net {net.name!r} is trained on the device of the run; leave out its device={str(net.device)!r}"
            elif any(isinstance(part, GraphModule) and "train" in vars(part) for part in net.module.modules()):
                # torch.export replaces `train` of a program by a method that raises
                yield f"net {net.name!r} has a program of torch.export in it; train the module that was exported"
            elif not any(parameter.requires_grad for parameter in net.module.parameters()):
                yield f"net {net.name!r} has nothing to train: none of its parameters requires a gradient"
            else:
                for key, value in net.module.state_dict().items():
                    if not isinstance(value, Tensor):
                        yield (
                            f"net {net.name!r} has {key!r}, a {type(value).__name__}, in its state_dict(), but a run "
                            "folder stores tensors only; remove get_extra_state, or return a tensor"
                        )
                    elif is_traceable_wrapper_subclass(value):  # such as the weights of torchao
                        advice = "quantize the network after it is trained, or use it as a teacher"
                        if type(value).__name__ == "DTensor":  # of fully_shard, and only with several processes
                            advice = "pass the module without fully_shard; torchrun divides batches, but no weights"
                        yield (
                            f"net {net.name!r} has {key!r}, a {type(value).__name__}, which a run folder cannot store; "
                            f"{advice}"
                        )
            for label, count in Counter(weighted.term.label for weighted in as_objective(objective)).items():
                if count > 1:
                    yield f"{count} terms are called {label!r}; distinguish them with label='...'"
            for weighted in as_objective(objective):
                for problem in self._term_problems(net, weighted.term):
                    yield f"term {weighted.term.label!r}: {problem}"

    def _optimizer_problems(self) -> Problems:
        """Create the optimizer and its schedule: wrong options of the last stage must show before the first runs."""
        training = self.stage.training
        named = [
            (f"{net.name}.{path}", parameter)
            for net in self.stage.objectives
            for path, parameter in net.network.named_parameters()
            if parameter.requires_grad
        ]
        try:
            optimizer = training.optimizer.build(named)
            if training.lr_schedule is not None:
                training.lr_schedule.build(optimizer, epochs=training.epochs, updates=training.epochs)
        except KdkitError as error:
            yield str(error)

    def _term_problems(self, net: Net[Any], term: Term) -> Problems:
        requirements = requirements_of(term.loss)
        if "ids" in requirements and not self.context.ids:
            yield f"it needs sample ids, {_NO_IDS}"
        if "sample_weights" in requirements and not self.context.has_weights:
            yield "it needs sample weights, and this data has none; its samples are triples (inputs, labels, weight)"
        if self.context.has_weights and isinstance(term, Truth) and "sample_weights" not in extra_kwargs_of(term.loss):
            yield (
                f"the samples of this data have weights, and {type(term.loss).__name__} does not use them; wrap it: "
                "kdkit.losses.SampleWeighted(...)"
            )
        if "hard_labels" in requirements and self.context.task != "multiclass":
            yield (
                f"it needs one class per sample, and this data is {self.context.task}; use a loss that does not, such "
                "as one of the PerLabel... losses"
            )
        reads_labels = isinstance(term, Truth) or "labels" in extra_kwargs_of(term.loss)
        if self.context.has_unknown and reads_labels and not accepts_unknown(term.loss):
            wrap, omit = "wrap it: kdkit.losses.IgnoreUnknown(...)", "use a loss that takes no labels"
            yield (
                f"labels of this data may be unknown, and {type(term.loss).__name__} does not leave them out; "
                f"{wrap if isinstance(term, Truth) else omit}"
            )
        if isinstance(term, Match):
            yield from self._teacher_problems(net, term)
            yield from _target_tap_problems(term)
        for tap in taps_of(term.student):
            yield from _foreign_tap(tap.module, net, "student")

    def _teacher_problems(self, net: Net[Any], match: Match) -> Problems:
        teacher = match.teacher
        if teacher is net or teacher in self.stage.objectives:
            yield (
                f"net {teacher.name!r} is trained in this stage, so it cannot be matched as a frozen teacher; match "
                "its output at this step, Peer(net), its output in the last epoch, Past(net), or its average, Ema(net)"
            )
        for member in teacher.members if isinstance(teacher, Teachers) else ():
            if member in self.stage.objectives:
                yield (
                    f"net {member.name!r} is trained in this stage, so it cannot be one of the frozen Teachers(...); "
                    "match Peer(net) in a separate term"
                )
        if isinstance(teacher, Past | Ema | Peer) and teacher.net not in self.stage.objectives:
            yield (
                f"{teacher.name!r} needs a net that is trained in this stage, and {teacher.net.name!r} is not; match "
                "the net itself, or train it here too"
            )
        if isinstance(teacher, Past) and teacher.net is not net:
            yield f"only net {teacher.net.name!r} can match {teacher.name!r}; use Peer(net) or Ema(net) instead"
        if isinstance(teacher, Past) and not self.context.ids:
            yield f"{teacher.name!r} needs sample ids, {_NO_IDS}"


def _target_tap_problems(match: Match) -> Problems:
    taps, teacher = taps_of(match.target), match.teacher
    if isinstance(teacher, Past) and taps:
        yield f"{teacher.name!r} has outputs only, no features; match it without target=..."
    elif isinstance(teacher, Teachers) and taps:
        if len(taps) != len(teacher.members):
            yield (
                f"Teachers(...) of {len(teacher.members)} nets takes a tuple of as many taps as target, one on each "
                f"net; got {len(taps)}"
            )
        for tap, member in zip(taps, teacher.members, strict=False):
            yield from _foreign_tap(tap.module, member, "target")
    elif isinstance(teacher, Net | Ema | Peer):
        net = teacher if isinstance(teacher, Net) else teacher.net
        for tap in taps:
            yield from _foreign_tap(tap.module, net, "target")


def _foreign_tap(module: nn.Module, net: Net[Any], side: str) -> Problems:
    if not isinstance(net.module, nn.Module):
        yield f"net {net.name!r} is a plain callable, which cannot be tapped"
    elif all(module is not part for part in net.module.modules()):
        yield f"the {side} tap is on a {type(module).__name__} that is not a part of net {net.name!r}"
