"""What is tried of the state of a loss and of those it compares: who is moved, what is kept, what is saved."""

import copy

import torch
from torch import Tensor, nn

from kdkit.losses import Loss
from kdkit.testing.loss_case import Trial


def moves_the_student_alone(trial: Trial) -> None:
    """Each tap of the student has a gradient; both sides and the teacher are left as they were."""
    before = copy.deepcopy(trial.teacher.state_dict())
    given = trial.given.changed("", torch.clone)
    loss = trial.built()
    trial.learned(given, loss)
    for index, each in enumerate(given.student):
        where = f"tap {index} of the student" if given.tuples else "the student"
        moved = each.grad is not None and bool(each.grad.any())
        trial.require(moved, given, f"moves nothing: the gradient to {where} is zero")
    for side in ("student", "target"):
        same = all(
            torch.equal(one.detach(), other)
            for one, other in zip(getattr(given, side), getattr(trial.given, side), strict=True)
        )
        trial.require(same, given, f"changes the {side}'s side in place")
    moved_too = [name for name, parameter in trial.teacher.named_parameters() if parameter.grad is not None]
    trial.require(not moved_too, given, f"moves the teacher: {', '.join(moved_too)} of it got a gradient")
    trial.require(_same(before, trial.teacher.state_dict()), given, "changes the teacher that it is built with")
    trial.require(not trial.teacher.training, given, "takes the teacher out of eval mode")
    _trains_its_own_alone(trial, loss)


def repeats(trial: Trial) -> None:
    """The value is a function of the seed."""
    first, again = (trial.value(trial.given) for _ in range(2))
    same = torch.equal(first, again)
    trial.require(same, trial.given, f"is not a function of its seed: {first.item()}, then {again.item()}")


def builds_again(trial: Trial) -> None:
    """Built twice, as happens when a recipe is checked and then run, it is what it was."""
    losses = [trial.built(builds=builds) for builds in (1, 2)]
    ones, twos = (_count(each) for each in losses)
    trial.require(ones == twos, trial.given, f"has {ones} parameters once it is built, and {twos} built again")
    once, twice = (trial.value(trial.given, each) for each in losses)
    same = torch.equal(once, twice)
    trial.require(same, trial.given, f"is {once.item()} once it is built, and {twice.item()} built again")


def comes_back_from_its_state(trial: Trial) -> None:
    """Saved after two steps and loaded into one that is new, it says the same, in training and in eval mode."""
    loss, restored = trial.built(), trial.built()
    if not isinstance(loss, nn.Module) or not isinstance(restored, nn.Module):
        return
    for _ in range(2):
        trial.value(trial.given, loss)
    with torch.no_grad():
        for each in loss.parameters():
            each.add_(torch.rand_like(each) / 10)  # as an optimizer would
    with trial.blaming(f"{trial.given}, when its state is loaded,"):
        restored.load_state_dict(copy.deepcopy(loss.state_dict()))
    for mode in ("eval", "training"):
        said, back = (trial.value(trial.given, each.train(mode == "training")) for each in (loss, restored))
        same = torch.equal(said, back)
        trial.require(
            same,
            trial.given,
            f"is {said.item()}, but {back.item()} from its state_dict() in {mode} mode; save the rest",
        )


def keeps_nothing_in_eval_mode(trial: Trial) -> None:
    """What it remembers of the training is not changed by looking at it."""
    loss = trial.built()
    if not isinstance(loss, nn.Module):
        return
    before = copy.deepcopy(loss.eval().state_dict())
    trial.value(trial.given, loss)
    same = _same(before, loss.state_dict())
    trial.require(same, trial.given, "changes its state in eval mode; keep it as it is unless self.training")


def _trains_its_own_alone(trial: Trial, loss: Loss) -> None:
    if not isinstance(loss, nn.Module):
        return
    theirs = {id(each): name for name, each in trial.teacher.named_parameters()}
    held = [theirs[id(each)] for each in loss.parameters() if id(each) in theirs]
    trial.require(
        not held, trial.given, f"holds {', '.join(held)} of the teacher, which would be trained with it; keep a copy"
    )
    idle = [name for name, each in loss.named_parameters() if each.requires_grad and each.grad is None]
    trial.require(not idle, trial.given, f"has weights that nothing trains: {', '.join(idle)}")


def _count(loss: Loss) -> int:
    return sum(each.numel() for each in loss.parameters()) if isinstance(loss, nn.Module) else 0


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
