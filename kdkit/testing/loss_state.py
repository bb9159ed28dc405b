"""Check gradients and state: which tensors a loss changes, and whether it can be rebuilt, saved and restored."""

import copy

import torch
from torch import Tensor, nn

from kdkit.testing.loss_case import LossCase


def gradient_reaches_only_the_student(case: LossCase) -> None:
    """Check that every tap of the student gets a gradient, and that inputs and teacher stay unchanged."""
    before = copy.deepcopy(case.teacher.state_dict())
    # a copy, so that the originals show whether the loss changes its inputs
    inputs = case.inputs.transform("", torch.clone)
    loss = case.build_loss()
    case.backward(inputs, loss)
    for index, tensor in enumerate(inputs.student):
        if tensor.grad is None or not tensor.grad.any():
            receiver = f"tap {index} of the student" if inputs.tuples else "the student"
            raise case.error(inputs, f"gives a zero gradient to {receiver}")
    for name, side, original in (
        ("student", inputs.student, case.inputs.student),
        ("target", inputs.target, case.inputs.target),
    ):
        if not all(torch.equal(tensor.detach(), copied) for tensor, copied in zip(side, original, strict=True)):
            raise case.error(inputs, f"changes the {name}'s tensors in place")
    with_gradient = [name for name, parameter in case.teacher.named_parameters() if parameter.grad is not None]
    if with_gradient:
        raise case.error(inputs, f"gives the teacher a gradient: {', '.join(with_gradient)}")
    if not _equal_states(before, case.teacher.state_dict()):
        raise case.error(inputs, "changes the state of the teacher that it is built with")
    if case.teacher.training:
        raise case.error(inputs, "takes the teacher out of eval mode")


def trains_only_its_own_weights(case: LossCase) -> None:
    """Check that none of the teacher's weights are parameters of the loss, and that all of its own get a gradient."""
    loss = case.build_loss()
    if not isinstance(loss, nn.Module):
        return
    case.backward(case.inputs.transform("", torch.clone), loss)
    # by identity: a copy of the teacher's weights has equal values, and is allowed
    teacher_names = {id(parameter): name for name, parameter in case.teacher.named_parameters()}
    shared = [teacher_names[id(parameter)] for parameter in loss.parameters() if id(parameter) in teacher_names]
    if shared:
        raise case.error(
            case.inputs,
            f"has the teacher's {', '.join(shared)} among its parameters, which would be trained; keep a copy instead",
        )
    untrained = [
        name for name, parameter in loss.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if untrained:
        raise case.error(case.inputs, f"has weights without a gradient: {', '.join(untrained)}")


def is_deterministic(case: LossCase) -> None:
    """Check that the value depends only on the seed."""
    first, second = (case.value(case.inputs) for _ in range(2))
    if not torch.equal(first, second):
        raise case.error(case.inputs, f"is not deterministic for one seed: {first.item()}, then {second.item()}")


def can_be_rebuilt(case: LossCase) -> None:
    """Check that a second build gives the same loss. A recipe builds it for the check and again for the run."""
    losses = [case.build_loss(builds=builds) for builds in (1, 2)]
    counts = [
        sum(parameter.numel() for parameter in loss.parameters()) if isinstance(loss, nn.Module) else 0
        for loss in losses
    ]
    if counts[0] != counts[1]:
        problem = f"has {counts[0]} parameters after one build, and {counts[1]} after two builds"
        raise case.error(case.inputs, problem)
    once, twice = (case.value(case.inputs, loss) for loss in losses)
    if not torch.equal(once, twice):
        problem = f"is {once.item()} after one build, and {twice.item()} after two builds"
        raise case.error(case.inputs, problem)


def restores_from_state_dict(case: LossCase) -> None:
    """Check that a new loss with the state of a used one gives the same value, in training and in eval mode."""
    loss, restored = case.build_loss(), case.build_loss()
    if not isinstance(loss, nn.Module) or not isinstance(restored, nn.Module):
        return
    # two steps, because some losses initialise their state in the first
    for _ in range(2):
        case.value(case.inputs, loss)
    with torch.no_grad():
        for parameter in loss.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter) / 10)  # simulates an optimizer step
    with case.contract_errors(f"on {case.inputs} when its state_dict() is loaded"):
        restored.load_state_dict(copy.deepcopy(loss.state_dict()))
    # eval mode first, because a call in training mode may change the state
    for mode in ("eval", "training"):
        value, restored_value = (
            case.value(case.inputs, module.train(mode == "training")) for module in (loss, restored)
        )
        if not torch.equal(value, restored_value):
            raise case.error(
                case.inputs,
                f"is {value.item()}, but {restored_value.item()} after loading its state_dict() in {mode} mode; save "
                "all of its state",
            )


def keeps_state_in_eval_mode(case: LossCase) -> None:
    """Check that a call in eval mode does not change the state of the loss."""
    loss = case.build_loss()
    if not isinstance(loss, nn.Module):
        return
    before = copy.deepcopy(loss.eval().state_dict())
    case.value(case.inputs, loss)
    if not _equal_states(before, loss.state_dict()):
        raise case.error(case.inputs, "changes its state in eval mode; update it only if self.training")


def _equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
