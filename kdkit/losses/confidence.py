"""How well each of several teachers says a sample's label, and losses of each sample by itself (CA-MKD)."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.loss import Facts, asked_by
from kdkit.losses.projected import Projected

_TRIED = 4  # samples


def confidence(answers: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return how much each teacher counts for each sample, (batch, teachers), which sum to 1 over the teachers.

    answers: (batch, classes) logits of each. labels: (batch,) classes, or (batch, classes) in [0, 1], whose binary
    cross-entropies are averaged.
    """
    errors = torch.stack([_errors(answer.float(), labels) for answer in answers], 1)
    return (1 - errors.softmax(1)) / (len(answers) - 1)


def by_sample(loss: Any, student: Tensor, target: Tensor, asked: dict[str, Any]) -> Tensor:
    """Return a loss for each sample by itself, (batch,). A projector sees the whole batch, as its norms need."""
    if isinstance(loss, Projected):
        student, loss = loss.projector(student), loss.between
    names = [name for name in ("labels", "ids") if asked.get(name) is not None]
    fixed = {name: value for name, value in asked.items() if name not in names}

    def alone(one: Tensor, other: Tensor, *rows: Tensor) -> Tensor:
        beside = {name: row[None] for name, row in zip(names, rows, strict=True)}
        value: Tensor = loss(one[None], other[None], **beside, **fixed)
        return value

    rows = [asked[name] for name in names]
    values: Tensor = vmap(alone, randomness="different")(student, target, *rows)
    return values


def require_apart(loss: Any, student: torch.Size, target: torch.Size, facts: Facts) -> None:
    """Raise RecipeError for a loss whose slope at one sample depends on the others of its batch.

    Tried on made-up sides of these shapes; a loss that fails on them is told of where it is computed in earnest.
    """
    trial = copy.deepcopy(loss)  # one that remembers must not remember this
    call = trial.between if isinstance(trial, Projected) else trial
    ours, theirs = (target if isinstance(trial, Projected) else student)[1:], target[1:]
    asked = asked_by(loss)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            beside = {name: each for name, each in _made_up(student, target, facts).items() if name in asked}
            one, others = ((torch.randn(_TRIED, *ours), torch.randn(_TRIED, *theirs)) for _ in range(2))
            mixed = tuple(torch.cat([first[:1], other[1:]]) for first, other in zip(one, others, strict=True))
            here, there = (_slope(call, sides, beside) for sides in (one, mixed))
    except Exception:  # a stranger's loss may raise anything
        return
    if not torch.allclose(here, there, rtol=1e-3, atol=1e-3 * float(here.abs().max()), equal_nan=True):
        raise RecipeError(
            f"weights='confidence' weighs each sample by itself, but in {type(loss).__name__} the samples of a batch "
            "depend on each other, by relations or a batch norm; take weights='equal', 'learned' or shares"
        )


def _made_up(student: torch.Size, target: torch.Size, facts: Facts) -> dict[str, Any]:
    """Return what a loss may ask for beside its sides."""
    hard = facts.task == "multiclass"
    return {
        "labels": torch.zeros(_TRIED, dtype=torch.int64) if hard else torch.zeros(_TRIED, *student[1:]),
        "ids": torch.arange(_TRIED),
        "progress": torch.tensor(0.5),
        "answers": (torch.zeros(_TRIED, *target[1:]),),
    }


def _slope(call: Any, sides: tuple[Tensor, ...], beside: dict[str, Any]) -> Tensor:
    """Return the slope of a loss at the first sample, under the same random numbers each time."""
    torch.manual_seed(0)
    student, target = sides
    student.requires_grad_()
    (slope,) = torch.autograd.grad(call(student, target, **beside), student)
    return slope[0]


def _errors(answers: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 1:
        return F.cross_entropy(answers, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(answers, labels.to(answers.dtype), reduction="none").mean(1)
