"""Print the plan of a recipe for `kdkit check`, and the registries for `kdkit list`."""

import re
import textwrap

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from kdkit.cli.estimates import describe_projector, describe_weight, estimate_lines, training_facts, type_name
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.losses.base import extra_kwargs_of
from kdkit.plugins.manager import Plugins
from kdkit.plugins.registry import REGISTRIES
from kdkit.recipe.objective import Match, as_objective
from kdkit.utils.printable import printable
from kdkit.utils.reprs import format_bytes

_LIST_WIDTH = 100  # columns of a list that goes to a file or a pipe


def show_plan(plan: Plan, console: Console, device: torch.device | None = None) -> None:
    """Print the nets, and each stage with its terms and its cost: which net learns what from which teacher.

    device: on which the plan was estimated.
    """
    console.print(nets_table(plan))
    estimates = plan.estimates or (None,) * len(plan.stages)
    rows = zip(plan.stages, plan.terms, plan.peak_memory_bytes, estimates, strict=True)
    for index, (stage, terms, peak, estimate) in enumerate(rows):
        # Names and reprs are escaped, since their square brackets would be markup to rich.
        training = escape(", ".join(training_facts(stage.training, plan.loader_batch)))
        tree = Tree(f"[bold]{index + 1}. {escape(stage.name)}[/bold]  {training}")
        for term in terms:
            branch = tree.add(term_line(term))
            for projector in term.projectors:
                branch.add(escape(describe_projector(projector)))
        for line in () if estimate is None else estimate_lines(estimate, device or torch.device("cpu")):
            tree.add(escape(line))
        if peak is not None:
            tree.add(
                f"peak memory of the dry run, with a few samples and no optimizer: {format_bytes(peak, base=1024)}; a "
                "training step takes more"
            )
        if not terms:  # a stage with problems that prevent its dry run
            tree.add("[red]no dry run, because of the problems below[/red]")
        console.print(tree)
    for notice in plan.notices:
        console.print(f"[yellow]note:[/yellow] {escape(notice)}")
    if not plan.problems:
        console.print("[green]no problems found[/green]")


def show_registries(plugins: Plugins, console: Console) -> None:
    """Print a line for each registered thing: its name, plugin, and as much of its description as fits."""
    width = console.width if console.is_terminal else min(console.width, _LIST_WIDTH)
    for kind, entries in registered(plugins).items():
        console.print(kind, style="bold", markup=False)
        names = max((len(printable(entry["name"])) for entry in entries), default=0)
        sources = max((len(printable(entry["plugin"])) for entry in entries), default=0)
        for entry in entries:
            start = f"{printable(entry['name']):{names}}  {printable(entry['plugin']):{sources}}  "
            text = printable(entry["description"])
            console.print(start + _shortened(text, max(20, width - len(start))), markup=False, soft_wrap=True)
        console.print()


def _shortened(text: str, width: int) -> str:
    """Return a sentence, cut after a clause if it is too long, or else after a word. `--json` has all of it."""
    if len(text) <= width:
        return text
    ends = [match.start() for match in re.finditer(r"[,:;] | \(", text[: width - 3])]
    # Not one of a word or two, which is too short to mean anything, nor one in brackets.
    clauses = [text[:end] for end in ends if end >= width // 3 and text[:end].count("(") == text[:end].count(")")]
    if clauses:
        return f"{clauses[-1]} ..."
    return textwrap.shorten(text, width, placeholder=" ...")


def registered(plugins: Plugins) -> dict[str, list[dict[str, str]]]:
    """Return what is registered by kind: the name, the plugin, and the first line of the docstring of each."""
    everything = {kind: plugins.registry(kind) for kind in REGISTRIES}
    return {
        kind: [
            {
                "name": name,
                "plugin": registry.plugin(name),
                "description": next(iter(str(registry[name].__doc__ or "").strip().splitlines()), ""),
            }
            for name in registry
        ]
        for kind, registry in everything.items()
    }


def nets_table(plan: Plan) -> Table:
    """Return a table with a row for each net: module, parameters, view, and what it learns from."""
    table = Table(title="Nets", title_justify="left", title_style="bold")
    for column in ("net", "module", "parameters", "view", "learns from"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for net in plan.nets:
        terms = [
            weighted.term
            for stage in plan.stages
            for weighted in (as_objective(stage.objectives[net]) if net in stage.objectives else ())
        ]
        reads_labels = any(not isinstance(term, Match) or "labels" in extra_kwargs_of(term.loss) for term in terms)
        # A dict instead of a set, to list each teacher once and in the order of the terms.
        teachers = dict.fromkeys(term.teacher.name for term in terms if isinstance(term, Match))
        sources = ", ".join([*(["labels"] if reads_labels else []), *teachers]) or "already trained"
        table.add_row(*map(escape, (net.name, type_name(net.module), f"{net.parameters:,}", net.view.key, sources)))
    return table


def term_line(term: TermSummary) -> str:
    """Return a term as markup: weight x label: the student's tensors <- the target's tensors by the loss."""
    target = term.target if term.teacher is None else f"{term.teacher} {term.target}"
    parameters = f", trains {term.parameters:,} parameters" if term.parameters else ""  # such as a projector's
    return (
        f"{describe_weight(term)} x [bold]{escape(term.label)}[/bold]: "
        + escape(f"{term.student_net} {term.student} <- {target} by {term.loss}")
        + parameters
    )
