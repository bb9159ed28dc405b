"""Show a plan and the shelves to a person, before anything runs."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.plugins.manager import Plugins
from kdkit.plugins.registry import REGISTRIES
from kdkit.recipe.objective import Match, as_objective


def show_plan(plan: Plan, console: Console) -> None:
    """Print the nets, then each stage with who learns what from whom."""
    console.print(_nets(plan))
    for index, (stage, comparisons) in enumerate(zip(plan.stages, plan.terms, strict=True)):
        training = stage.training
        tree = Tree(
            f"[bold]{index + 1}. {escape(stage.name)}[/bold]  {training.epochs} epochs of batches of "
            f"{training.batch_size}, {escape(repr(training.optimizer))}, keeps the {training.keep} epoch"
        )
        for comparison in comparisons:
            tree.add(_line(comparison))
        if not comparisons:
            tree.add("[red]could not be rehearsed[/red]")
        console.print(tree)
    if not plan.problems:
        console.print("[green]no problems found[/green]")


def show_shelves(plugins: Plugins, console: Console) -> None:
    """Print every shelf: name, plugin, and the first sentence of what each thing says of itself."""
    for kind in REGISTRIES:
        registry = plugins.registry(kind)
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("name", "plugin", "what it is"):
            table.add_column(column, overflow="fold")
        for name in registry:
            text = (registry[name].__doc__ or "").strip().splitlines()
            table.add_row(*map(escape, (name, registry.plugin(name), text[0] if text else "")))
        console.print(table)
        console.print()


def _nets(plan: Plan) -> Table:
    table = Table(title="Nets", title_justify="left", title_style="bold")
    for column in ("net", "module", "parameters", "view", "learns from"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for net in plan.nets:
        stage = next((stage for stage in plan.stages if net in stage.objectives), None)
        terms = as_objective(stage.objectives[net]) if stage is not None else ()
        names = dict.fromkeys(each.term.teacher.name for each in terms if isinstance(each.term, Match))
        teachers = ", ".join(names)
        learns = "comes trained" if stage is None else f"labels, {teachers}" if teachers else "labels"
        module = getattr(net.module, "__name__", None) or type(net.module).__name__
        table.add_row(*map(escape, (net.name, module, f"{net.parameters:,}", net.view.key, learns)))
    return table


def _line(comparison: TermSummary) -> str:
    start, end = comparison.weight
    weight = f"{start:g}" if start == end else f"{start:g} to {end:g}"
    target = comparison.target if comparison.teacher is None else f"{comparison.teacher} {comparison.target}"
    projector = f", trains {comparison.parameters:,} parameters of its own" if comparison.parameters else ""
    return (
        f"{weight} x [bold]{escape(comparison.label)}[/bold]: "
        + escape(f"{comparison.student} {comparison.student} <- {target} by {comparison.loss}")
        + projector
    )
