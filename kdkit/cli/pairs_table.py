"""Print the advice of `kdkit check --pairs`: the layers to pair, and the taps to copy."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from kdkit.engine.measurement.layer_pairs import LayerPair, PairAdvice
from kdkit.nets.net import Net
from kdkit.nets.timm import token_stage


def show_pairs(advice: PairAdvice, console: Console) -> None:
    """Print the best pairs of a student and a teacher, and an expression for each."""
    student, teacher = advice.student, advice.teacher
    if not advice.pairs:
        console.print(f"no layers of {student.name} and {teacher.name} are similar", markup=False)
        return
    table = Table(
        title=escape(f"Layers of {student.name} and {teacher.name}"), title_justify="left", title_style="bold"
    )
    for column in (student.name, "shape", teacher.name, "shape", "CKA", "depths", "a loss needs"):
        table.add_column(escape(column), justify="right" if column == "CKA" else "left", overflow="fold")
    for pair in advice.pairs:
        depths = f"{pair.student.depth:.0%}, {pair.teacher.depth:.0%}"
        layers = [text for layer in (pair.student, pair.teacher) for text in (layer.path, str(layer.shape))]
        table.add_row(*map(escape, layers), f"{pair.similarity:.2f}", depths, _needed(pair))
    console.print(table)
    for pair in advice.pairs:
        taps = (
            f"student={tap_expression(student, pair.student.path)}, target={tap_expression(teacher, pair.teacher.path)}"
        )
        console.print(taps, markup=False, soft_wrap=True)  # one line, to copy
    untrained = [net.name for net in (student, teacher) if not net.trained]
    if untrained:
        console.print(
            f"[yellow]note:[/yellow] CKA was computed with the initial weights of {escape(' and '.join(untrained))}; "
            "to use trained weights, pass Net(..., weights=FILE)"
        )


def tap_expression(net: Net[Any], path: str) -> str:
    """Return the code of a tap on a layer, for a recipe with a variable of the network's name."""
    expression, module = f"{net.name if net.name.isidentifier() else 'net'}.module", net.network
    stage = token_stage(module, path)
    if stage is not None:  # as a map, without class and register tokens
        return f"timm_tap({expression}, {stage})"
    for part in path.split("."):
        if part.isdigit() and isinstance(module, nn.Sequential | nn.ModuleList):
            expression += f"[{part}]"
        elif isinstance(module, nn.ModuleDict):
            expression += f"[{part!r}]"
        else:
            expression += f".{part}" if part.isidentifier() else f".get_submodule({part!r})"
        module = module.get_submodule(part)
    return f"Tap({expression})"


def _needed(pair: LayerPair) -> str:
    """Return what a loss needs to compare the two shapes, such as a projector."""
    (channels, *positions), (target_channels, *target_positions) = pair.student.shape, pair.teacher.shape
    parts = []
    if channels != target_channels:
        parts.append(f"a projector {channels} -> {target_channels}")
    if positions != target_positions:
        parts.append("a resize" if len(positions) == len(target_positions) else "positions of another form")
    return ", ".join(parts) or "nothing"
