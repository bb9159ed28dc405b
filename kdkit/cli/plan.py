"""Print the plan of a recipe for `kdkit check`, and describe its terms and its cost."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from kdkit.engine.check.estimate import CacheForecast, StageEstimate
from kdkit.engine.check.plan import Plan, ProjectorSummary, TermSummary
from kdkit.engine.stage.terms import uses_labels
from kdkit.recipe.objective import model_loss
from kdkit.recipe.recipe import weighted_terms
from kdkit.recipe.training import Training
from kdkit.utils.reprs import describe_count, format_bytes, format_count, weight_text

_SLOW_READING = 0.2  # share of the time of the steps; less is not worth a line


def show_plan(plan: Plan, console: Console, device: torch.device | None = None) -> None:
    """Print the nets, and each stage with its terms and its cost: which net learns what from which teacher.

    device: the device on which the cost was estimated.
    """
    console.print(_nets_table(plan))
    for number, stage_plan in enumerate(plan.stage_plans, start=1):
        # Names and reprs are escaped, because rich reads square brackets as markup.
        stage, estimate, peak = stage_plan.stage, stage_plan.estimate, stage_plan.peak_memory_bytes
        training = escape(", ".join(_training_facts(stage.training, plan.loader_batch)))
        tree = Tree(f"[bold]{number}. {escape(stage.name)}[/bold]  {training}")
        for term in stage_plan.terms:
            branch = tree.add(_term_line(term))
            for projector in term.projectors:
                branch.add(escape(describe_projector(projector)))
        for line in () if estimate is None else estimate_lines(estimate, device or torch.device("cpu")):
            tree.add(escape(line))
        if peak is not None:
            tree.add(
                f"peak memory of the dry run, with a few samples and no optimizer: {format_bytes(peak, base=1024)}; a "
                "training step takes more"
            )
        if not stage_plan.terms:  # a stage with problems that prevent its dry run
            tree.add("[red]no dry run, because of the problems below[/red]")
        console.print(tree)
    for notice in plan.notices:
        console.print(f"[yellow]note:[/yellow] {escape(notice)}")
    if not plan.problems:
        console.print("[green]no problems found[/green]")


def _nets_table(plan: Plan) -> Table:
    """Return a table with a row for each net: module, parameters, view, and what it learns from."""
    table = Table(title="Nets", title_justify="left", title_style="bold")
    for column in ("net", "module", "parameters", "view", "learns from"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for net in plan.nets:
        terms = [weighted.term for stage in plan.stages for owner, weighted in weighted_terms(stage) if owner is net]
        # A dict instead of a set, to list each teacher once and in the order of the terms.
        teachers = dict.fromkeys(term.teacher.name for term in terms if term.teacher is not None)
        own = {"labels": any(map(uses_labels, terms)), "its own loss": any(term.loss is model_loss for term in terms)}
        sources = ", ".join([*(name for name, is_used in own.items() if is_used), *teachers]) or "already trained"
        size = f"{net.parameters:,}"
        if terms and not all(parameter.requires_grad for parameter in net.network.parameters()):  # such as LoRA
            trained = sum(parameter.numel() for parameter in net.network.parameters() if parameter.requires_grad)
            size = f"{trained:,} of {size} trained"
        table.add_row(*map(escape, (net.name, type_name(net.module), size, net.view.key, sources)))
    return table


def _term_line(term: TermSummary) -> str:
    """Return a term as markup: weight x label: the student's tensors <- the target's tensors by the loss."""
    target = " ".join(filter(None, [term.teacher, term.target]))
    arrow = f" <- {target}" if target else ""
    parameters = f", trains {term.parameters:,} parameters" if term.parameters else ""  # such as a projector's
    return (
        f"{describe_weight(term)} x [bold]{escape(term.label)}[/bold]: "
        + escape(f"{term.student_net} {term.student}{arrow} by {term.loss}")
        + parameters
    )


def _training_facts(training: Training, loader_batch: int | None) -> Iterator[str]:
    """Yield descriptions of the training options of a stage. loader_batch: see `Plan`."""
    size = f"{training.batch_size}" if loader_batch is None else f"{loader_batch}, as its DataLoader yields them"
    steps = training.steps_per_epoch
    batches = "batches" if steps is None else describe_count(steps, "batch", "batches")
    yield f"{describe_count(training.epochs, 'epoch')} of {batches} of {size}"
    if training.accumulate_steps > 1:
        yield f"{training.accumulate_steps} batches per update"
    yield repr(training.optimizer)
    if training.lr_schedule is not None:
        yield repr(training.lr_schedule)
    if training.max_grad_norm is not None:
        yield f"clips the norm of gradients at {training.max_grad_norm:g}"
    if training.ema is not None:
        yield f"averages weights with a decay of {training.ema.decay:g}"
    if training.patience is not None:
        yield f"stops after {describe_count(training.patience, 'epoch')} without improvement"
    metric = f" by {training.monitor}" if training.monitor is not None and training.keep == "best" else ""
    yield f"keeps the {training.keep} epoch{metric}"


def estimate_lines(estimate: StageEstimate, device: torch.device) -> Iterator[str]:
    """Yield the sentences about a stage."""
    yield from _caching_lines(estimate.caching)
    if estimate.multiply_adds:
        counts = ", ".join(f"{name} {format_count(count)}" for name, count in estimate.multiply_adds.items())
        yield f"multiply-adds for one sample: {counts}"
    times, cached = estimate.times, estimate.cached_seconds
    if times is not None and cached is not None:
        processor = (
            "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        )
        steps = describe_count(times.steps, "step")
        # Two times that round to the same number would be confusing.
        after = f", {about(cached)} with cached outputs" if cached < 0.95 * times.seconds else ""
        source = f", from one forward pass of {times.timed_samples} samples" if times.is_rough else ""
        yield (
            f"{'roughly' if times.is_rough else 'about'} {about(times.seconds)} per epoch of {steps} on {processor}"
            f"{after}{source}; not counting data loading and validation"
        )
        reading = estimate.reading_seconds
        if reading is not None and reading > max(_SLOW_READING * times.seconds, 1.0):
            yield (
                f"one process takes about {about(reading)} per epoch to read the data; Training(workers=N) reads ahead "
                "in N processes"
            )
        if times.peak_memory_bytes is not None:
            peak = format_bytes(times.peak_memory_bytes, base=1024)
            yield f"peak memory of a training step of {times.timed_samples} samples: {peak}"


def _caching_lines(caching: Mapping[str, CacheForecast]) -> Iterator[str]:
    """Yield whether each teacher's outputs are cached or reused. Teachers that run for the same reason share a line."""
    running: dict[str, list[str]] = {}
    for name, forecast in caching.items():
        if not forecast.is_cached:
            running.setdefault(forecast.reason, []).append(name)
            continue
        size = "" if forecast.bytes is None else f", {format_bytes(forecast.bytes)}"
        if forecast.folder is None:
            yield f"the outputs of {name} are cached for this run only{size}"
        elif forecast.entry is None:
            yield f"the outputs of {name} will be cached in {forecast.folder}{size}"
        else:
            path = forecast.folder / forecast.entry.path.name[:12]  # as `kdkit cache` shows it
            written = f"{forecast.entry.written:,} of {forecast.entry.rows:,}"
            yield f"the outputs of {name} are reused: {written} are in {path}"
    for reason, names in running.items():
        who, whose = f"{names[0]} runs", "its"
        if len(names) > 1:
            who, whose = f"{', '.join(names[:-1])} and {names[-1]} run", "their"
        why = f"{whose} outputs are not cached, because {reason}" if reason else "no output is needed twice"
        yield f"{who} at each step: {why}"


def describe_projector(projector: ProjectorSummary) -> str:
    """Return a projector with its shapes and parameters."""
    parameters = describe_count(projector.parameters, "parameter")
    return f"{projector.module} {projector.input} -> {projector.output}, {parameters}"


def describe_weight(term: TermSummary) -> str:
    """Return the weight of a term; for a ramp, its weights at the start and at the end of the stage."""
    start, end = term.weight
    return weight_text(f"{start:g}", f"{end:g}", term.factors)


def type_name(value: Any) -> str:
    """Return the name of a class or a function, or of the class of an object."""
    return getattr(value, "__name__", None) or type(value).__name__


def about(seconds: float) -> str:
    """Return a time with two significant digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 99.5 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s" if seconds >= 0.01 else "0.01 s"
