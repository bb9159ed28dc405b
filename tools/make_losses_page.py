"""Write the tables of docs/losses.md from what the losses say and do: `python tools/make_losses_page.py`."""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdkit import losses
from kdkit.errors import KdkitError
from kdkit.losses import BuildContext, Loss, SoftTargets, asked_by, catalog, loss_name, needs_of

Make = Callable[..., Loss]
Shape = tuple[int, ...]

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
MARK = "<!-- `python tools/make_losses_page.py` writes all that follows, from the docstrings of the losses. -->"
FIELDS = ("Formula", "Shapes", "Source")
SHAPES = ("(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, tokens, C)")
TITLES = {
    "ON_OUTPUTS": "On outputs, one class out of many",
    "PER_LABEL": "On outputs, an answer for every label",
    "ON_RELATIONS": "On relations between samples",
    "ON_FEATURES": "On features",
    "PRESETS": "At the scales of other codes",
}
NEEDS = {
    "hard_labels": "one class each",
    "labels": "labels",
    "ids": "ids",
    "progress": "progress",
    "teacher_outputs": "all teachers' answers",
}


def main() -> None:
    """Write the page anew; what stands above the mark is kept."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """Return the page with its tables made anew. Raises KdkitError where a loss says too little."""
    above, mark, _tables = page.partition(MARK)
    if not mark:
        raise KdkitError(f"the tables come after the line {MARK!r}, which {PAGE.name} has not; put it back")
    return f"{above}{MARK}\n" + "".join(_table(title, makers) for title, makers in groups())


def groups() -> Iterator[tuple[str, dict[str, Make]]]:
    """Yield what kdkit ships by what it compares: a title, and what makes each loss by its name on the shelf."""
    for group, makers in vars(catalog).items():
        if group.isupper() and isinstance(makers, tuple | dict):
            named = makers if isinstance(makers, dict) else {loss_name(make): make for make in makers}
            yield TITLES.get(group, group.replace("_", " ").capitalize()), named
    shelved = {make for makers in vars(catalog).values() if isinstance(makers, tuple) for make in makers}
    others = [make for make in map(vars(losses).get, losses.__all__) if is_loss(make) and make not in shelved]
    yield "Around another loss, not on the shelf", {make.__name__: make for make in others}


def is_loss(thing: object) -> bool:
    """Whether something is a class whose objects compare a student and a target."""
    if not inspect.isclass(thing):
        return False
    call = getattr(thing, "forward" if issubclass(thing, nn.Module) else "__call__")
    return [*inspect.signature(call).parameters][1:3] == ["student", "target"]


def fields(make: Make) -> dict[str, str]:
    """Return the fields that a docstring ends in, by name. Raises KdkitError where one is missing or empty."""
    text = inspect.getdoc(make) or ""
    found = {name: " ".join(value.split()) for name, value in re.findall(r"^(\w+): (.+(?:\n    .+)*)", text, re.M)}
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise KdkitError(
            f"the docstring of {make.__qualname__} ends in the fields {', '.join(FIELDS)}; {', '.join(missing)} is "
            "missing: write 'Name: value' on a line of its own, what does not fit on the next lines, indented by four"
        )
    return {name: found[name] for name in FIELDS}


def shapes(found: dict[str, str]) -> list[str]:
    """Return the shapes of the student that fields name; what comes after a semicolon is said of something else."""
    stated = found["Shapes"].partition(";")[0]
    return [shape for shape in SHAPES if shape in stated]


def _table(title: str, makers: dict[str, Make]) -> str:
    rows = "".join(_row(name, make) for name, make in makers.items())
    return f"\n## {title}\n\n| loss | formula | takes | needs | source |\n|---|---|---|---|---|\n{rows}"


def _row(name: str, make: Make) -> str:
    said = fields(make)
    formula, _, where = said["Formula"].partition(", with ")
    names = dict.fromkeys((name, make.__qualname__))
    takes = "; ".join([said["Shapes"], *(_differing(make) if said["Shapes"].startswith("features") else ())])
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", said["Source"])
    source = re.sub(r"OpenReview:(\w+)", r"[OpenReview](https://openreview.net/forum?id=\1)", source)
    trials = [f"`{formula}`" + (f" with {where}" if where else ""), takes, _needs(make), source]
    line = " | ".join(["<br>".join(f"`{each}`" for each in names), *(trial.replace("|", "\\|") for trial in trials)])
    return f"| {line} |\n"


def _needs(make: Make) -> str:
    loss = _made(make)
    needs = needs_of(loss) - ({"labels"} if "hard_labels" in needs_of(loss) else set())
    named = [NEEDS[each] for each in NEEDS if each in needs]
    named += [f"{NEEDS[each]} if there are any" for each in NEEDS if each in asked_by(loss) - needs_of(loss)]
    shape = (4, 5)
    if _meet(make, [shape], [shape]) and not _meet(make, [shape], [shape], with_teacher=False):
        named.append("the teacher's layers")
    return ", ".join([*named, *(["build"] if hasattr(loss, "build") else [])])


def _differing(make: Make) -> Iterator[str]:
    """Yield in what the sides may differ, and how many taps they may be, as found by trying."""
    first = (4, 5, 9)
    others = {"channels": (4, 7, 9), "positions": (4, 5, 6), "dimensions": (4, 5, 3, 2)}
    may = [what for what, other in others.items() if _meet_both_ways(make, first, other)]
    if may:
        yield f"{' and '.join(', '.join(may).rsplit(', ', 1))} may differ"
    if "dimensions" not in may and _meet_both_ways(make, first, (4, 5, 3, 3)):
        yield "a map may meet as many tokens"
    if _meet(make, [first] * 2, [first] * 3):
        yield "any number of taps"
    elif _meet(make, [first] * 2, [first] * 2):
        yield "one tap or several"


def _meet_both_ways(make: Make, one: Shape, other: Shape) -> bool:
    return _meet(make, [one], [other]) and _meet(make, [other], [one])


def _meet(make: Make, student: Sequence[Shape], target: Sequence[Shape], *, with_teacher: bool = True) -> bool:
    """Whether a loss takes sides of these shapes, each a tap, and gives a scalar."""
    facts = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=4, ids=True)
    known = {"labels": torch.arange(4) % 3, "ids": torch.arange(4), "progress": torch.tensor(0.5)}
    teacher = nn.Sequential(nn.Linear(target[0][1], 3), nn.BatchNorm1d(target[0][1])) if with_teacher else None
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("error")  # of shapes that broadcast
        try:
            loss = _made(make)
            if hasattr(loss, "build"):
                loss.build(tuple(map(torch.Size, student)), tuple(map(torch.Size, target)), facts, teacher)
            value = loss(_side(student), _side(target), **{name: known[name] for name in asked_by(loss)})
        except Exception:  # in whatever words it refuses them
            return False
    return isinstance(value, Tensor) and value.ndim == 0


def _made(make: Make) -> Loss:
    try:
        return make()
    except TypeError:  # one around another loss
        return make(SoftTargets())


def _side(taps: Sequence[Shape]) -> Tensor | tuple[Tensor, ...]:
    tensors = tuple(map(torch.randn, taps))
    return tensors if len(tensors) > 1 else tensors[0]


if __name__ == "__main__":
    main()
