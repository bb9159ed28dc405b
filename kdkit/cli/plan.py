"""Print the plan of a recipe for `kdkit check`."""

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from kdkit.cli.estimates import describe_projector, describe_weight, estimate_lines, training_facts, type_name
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.engine.stage.terms import uses_labels
from kdkit.recipe.objective import model_loss
from kdkit.recipe.recipe import weighted_terms
from kdkit.utils.reprs import format_bytes


def show_plan(plan: Plan, console: Console, device: torch.device | None = None) -> None:
    """Print the nets, and each stage with its terms and its cost: which net learns what from which teacher.

    device: the device on which the cost was estimated.
    """
    console.print(nets_table(plan))
    for number, stage_plan in enumerate(plan.stage_plans, start=1):
        # Names and reprs are escaped, because rich reads square brackets as markup.
        stage, estimate, peak = stage_plan.stage, stage_plan.estimate, stage_plan.peak_memory_bytes
        training = escape(", ".join(training_facts(stage.training, plan.loader_batch)))
        tree = Tree(f"[bold]{number}. {escape(stage.name)}[/bold]  {training}")
        for term in stage_plan.terms:
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
        if not stage_plan.terms:  # a stage with problems that prevent its dry run
            tree.add("[red]no dry run, because of the problems below[/red]")
        console.print(tree)
    for notice in plan.notices:
        console.print(f"[yellow]note:[/yellow] {escape(notice)}")
    if not plan.problems:
        console.print("[green]no problems found[/green]")


def nets_table(plan: Plan) -> Table:
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


def term_line(term: TermSummary) -> str:
    """Return a term as markup: weight x label: the student's tensors <- the target's tensors by the loss."""
    target = " ".join(filter(None, [term.teacher, term.target]))
    arrow = f" <- {target}" if target else ""
    parameters = f", trains {term.parameters:,} parameters" if term.parameters else ""  # such as a projector's
    return (
        f"{describe_weight(term)} x [bold]{escape(term.label)}[/bold]: "
        + escape(f"{term.student_net} {term.student}{arrow} by {term.loss}")
        + parameters
    )
