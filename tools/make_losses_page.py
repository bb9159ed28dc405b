"""Write the tables of docs/losses.md from the docstrings and the behaviour of the losses.

Run `python tools/make_losses_page.py`; text above the mark is kept.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit import losses
from kdkit.errors import KdkitError
from kdkit.losses import (
    BuildableLoss,
    BuildContext,
    Loss,
    SoftTargets,
    catalog,
    extra_kwargs_of,
    loss_name,
    requirements_of,
)

Make = Callable[..., Loss]
Shape = tuple[int, ...]

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
MARK = "<!-- Written by `python tools/make_losses_page.py` from the docstrings of the losses: edit those instead. -->"
FIELDS = ("Formula", "Shapes", "Source")
SHAPES = ("(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, tokens, C)")
# The heading of each group of kdkit.losses.catalog.
TITLES = {
    "ON_OUTPUTS": "On outputs, for one class per sample",
    "PER_LABEL": "On outputs, for multi-label classification",
    "ON_RELATIONS": "On relations between samples",
    "ON_FEATURES": "On features",
    "PRESETS": "Soft targets at the scale of other code",
}
# The words of the table for the keyword arguments and requirements of a loss.
NEEDS = {
    "hard_labels": "one class per sample",
    "labels": "labels",
    "ids": "ids",
    "progress": "progress",
    "teacher_outputs": "outputs of all teachers",
    "sample_weights": "weights of samples",
    "inputs": "inputs of the batch",
}


def main() -> None:
    """Update the tables of the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(page: str) -> str:
    """Return the page with new tables after the mark. Raises KdkitError without the mark or a docstring's field."""
    head, mark, _tables = page.partition(MARK)
    if not mark:
        raise KdkitError(f"{PAGE.name} lacks the line after which the tables are written; put it back: {MARK}")
    return f"{head}{MARK}\n" + "".join(_table(title, makers) for title, makers in groups())


def groups() -> Iterator[tuple[str, dict[str, Make]]]:
    """Yield the groups of losses in the order of the page: a title, and the loss classes by their registered names."""
    registered: set[Make] = set()
    for group, makers in vars(catalog).items():
        if group.isupper() and isinstance(makers, tuple | dict):
            named = makers if isinstance(makers, dict) else {loss_name(make): make for make in makers}
            registered |= set(makers) if isinstance(makers, tuple) else set()
            yield TITLES.get(group, group.replace("_", " ").capitalize()), named
    # wrappers take another loss as an argument, so they have no registered name
    wrappers = [make for make in map(vars(losses).get, losses.__all__) if is_loss(make) and make not in registered]
    yield "Wrappers of another loss, not registered", {make.__name__: make for make in wrappers}


def is_loss(value: object) -> bool:
    """Return whether a value is a class of losses, and not the base of some."""
    if not inspect.isclass(value) or value is losses.ProjectedLoss:
        return False
    call = getattr(value, "forward" if issubclass(value, nn.Module) else "__call__")
    return [*inspect.signature(call).parameters][1:3] == ["student", "target"]


def fields(make: Make) -> dict[str, str]:
    """Return the fields at the end of a docstring, by name. Raises KdkitError if one is missing or empty."""
    text = inspect.getdoc(make) or ""
    # a field continues on lines that are indented by four
    values = {name: " ".join(value.split()) for name, value in re.findall(r"^(\w+): (.+(?:\n    .+)*)", text, re.M)}
    missing = [name for name in FIELDS if name not in values]
    if missing:
        raise KdkitError(
            f"the docstring of {make.__qualname__} ends with the fields {', '.join(FIELDS)}; {', '.join(missing)} is "
            "missing: write 'Name: value' on its own line, and indent its further lines by four spaces"
        )
    return {name: values[name] for name in FIELDS}


def shapes(loss_fields: dict[str, str]) -> list[str]:
    """Return the shapes of the student in the field Shapes; the text after a semicolon is about something else."""
    stated = loss_fields["Shapes"].partition(";")[0]
    return [shape for shape in SHAPES if shape in stated]


def _table(title: str, makers: dict[str, Make]) -> str:
    rows = "".join(_row(name, make) for name, make in makers.items())
    return f"\n## {title}\n\n| loss | formula | options | takes | needs | source |\n|---|---|---|---|---|---|\n{rows}"


def _row(name: str, make: Make) -> str:
    loss_fields = fields(make)
    formula, _, symbols = loss_fields["Formula"].partition(", with ")
    names = dict.fromkeys((name, make.__qualname__))  # a wrapper has one name only
    on_features = loss_fields["Shapes"].startswith("features")
    takes = "; ".join([loss_fields["Shapes"], *(_differences(make) if on_features else ())])
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", loss_fields["Source"])
    source = re.sub(r"OpenReview:(\w+)", r"[OpenReview](https://openreview.net/forum?id=\1)", source)
    cells = [f"`{formula}`" + (f" with {symbols}" if symbols else ""), _options(make), takes, _needs(make), source]
    # a bar would end the cell
    line = " | ".join(["<br>".join(f"`{name}`" for name in names), *(cell.replace("|", "\\|") for cell in cells)])
    return f"| {line} |\n"


def _options(make: Make) -> str:
    """Return the options of a loss with their defaults, without those of its projector, which are the same for all."""
    texts = []
    for parameter in inspect.signature(make).parameters.values():
        value = parameter.default
        if value is parameter.empty or parameter.name in ("projector", "kind"):
            continue
        if not isinstance(value, int | float | str | tuple | None):  # made by a factory
            value = type(getattr(_make_loss(make), parameter.name)).__name__
            texts.append(f"`{parameter.name}={value}()`")
        else:
            text = f"{value:g}" if isinstance(value, float) else repr(value)
            texts.append(f"`{parameter.name}={text}`")
    return ", ".join(texts)


def _needs(make: Make) -> str:
    loss = _make_loss(make)
    requirements, accepted = requirements_of(loss), extra_kwargs_of(loss)
    # "one class per sample" includes "labels"
    shown = requirements - ({"labels"} if "hard_labels" in requirements else set())
    named = [NEEDS[name] for name in NEEDS if name in shown]
    named += [f"{NEEDS[name]} if there are any" for name in NEEDS if name in accepted - requirements]
    shape = (4, 5)
    if _accepts(make, [shape], [shape]) and not _accepts(make, [shape], [shape], with_teacher=False):
        named.append("the teacher's layers")
    return ", ".join([*named, *(["build"] if isinstance(loss, BuildableLoss) else [])])


def _differences(make: Make) -> Iterator[str]:
    """Yield the ways in which the sides may differ, and the numbers of taps, by calling the loss on examples."""
    base = (4, 5, 9)
    taps = 1 if _accepts(make, [base], [base]) else 2
    variants = {"channels": (4, 7, 9), "positions": (4, 5, 6), "dimensions": (4, 5, 3, 2)}
    accepted = [name for name, variant in variants.items() if _accepts_both_ways(make, [base] * taps, [variant] * taps)]
    if accepted:
        yield f"{' and '.join(', '.join(accepted).rsplit(', ', 1))} may differ"
    # 9 tokens and a map of 3 x 3
    if "dimensions" not in accepted and _accepts_both_ways(make, [base] * taps, [(4, 5, 3, 3)] * taps):
        yield "tokens may be compared to a map of as many positions"
    if _accepts(make, [base] * 2, [base] * 3):
        yield "any number of taps"
    elif _accepts(make, [base] * 2, [base] * 2):
        yield "one tap or several" if taps == 1 else "two taps or more"


def _accepts_both_ways(make: Make, first: Sequence[Shape], second: Sequence[Shape]) -> bool:
    return _accepts(make, first, second) and _accepts(make, second, first)


def _accepts(make: Make, student: Sequence[Shape], target: Sequence[Shape], *, with_teacher: bool = True) -> bool:
    """Return whether a loss returns a scalar for sides of these shapes, one per tap, and labels of either kind."""
    classes = torch.arange(4) % 3
    return any(
        _returns_scalar(make, student, target, labels, with_teacher=with_teacher)
        for labels in (classes, F.one_hot(classes, 3))
    )


def _returns_scalar(
    make: Make, student: Sequence[Shape], target: Sequence[Shape], labels: Tensor, *, with_teacher: bool
) -> bool:
    context = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=4, ids=True)
    kwargs = {"labels": labels, "ids": torch.arange(4), "progress": torch.tensor(0.5)}
    teacher = nn.Sequential(nn.Linear(target[0][1], 3), nn.BatchNorm1d(target[0][1])) if with_teacher else None
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("error")  # torch warns of shapes that broadcast
        try:
            loss = _make_loss(make)
            if isinstance(loss, BuildableLoss):
                loss.build(tuple(map(torch.Size, student)), tuple(map(torch.Size, target)), context, teacher)
            value = loss(
                *map(_random_side, (student, target)), **{name: kwargs[name] for name in extra_kwargs_of(loss)}
            )
        except Exception:  # a RecipeError of the loss, or an error of torch for shapes that it does not check
            return False
    return isinstance(value, Tensor) and value.ndim == 0


def _make_loss(make: Make) -> Loss:
    try:
        return make()
    except TypeError:  # a wrapper needs a loss
        return make(SoftTargets())


def _random_side(taps: Sequence[Shape]) -> Tensor | tuple[Tensor, ...]:
    tensors = tuple(map(torch.randn, taps))
    return tensors if len(tensors) > 1 else tensors[0]


if __name__ == "__main__":
    main()
