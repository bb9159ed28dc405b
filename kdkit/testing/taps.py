"""Check the contract of a tap: it captures a tensor in each pass, and leaves the module unchanged."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.errors import ContractError, RecipeError, describe
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.nets.views import Inputs
from kdkit.utils.modules import eval_mode

M = TypeVar("M", bound=nn.Module)


def check_tap(make_tap: Callable[[M], TapLike], module: M, example: Any) -> None:
    """Check a tap on a module. Raises ContractError for the first check that fails.

    make_tap: returns a tap on the module or on a part of it. example: the module's inputs, as in a batch: a
    tensor, a tuple of arguments or a dict of keyword arguments.

    The tap captures a tensor in each pass, and gradients flow through it. The module has the same output without the
    tap, while it is open and after it is closed. No hook is left behind.
    """
    if not callable(make_tap):
        raise ContractError(
            "check_tap takes a function from a module to a tap on it, such as lambda module: Tap(module[1]); got "
            f"{describe(make_tap)}"
        )
    args, kwargs = Inputs()(Batch(example, torch.empty(0)))
    tap = make_tap(module)
    name = type(tap).__name__
    if not isinstance(tap, TapLike):
        raise ContractError(f"{name} is not a tap: it needs the attribute module and the method attach()")
    if all(tap.module is not part for part in module.modules()):
        raise ContractError(f"{name} is on a {type(tap.module).__name__} that is not a part of the module")

    def output() -> Any:
        torch.manual_seed(0)  # the module may draw random numbers
        return module(*args, **kwargs)

    with eval_mode(module), torch.random.fork_rng():
        before, hooks = output(), _hook_counts(module)
        try:
            opened = OpenTaps([tap])
        except RecipeError as error:  # for example, attach() did not return a function
            raise ContractError(str(error)) from error
        with opened as open_taps:
            # twice, because a tap that fires only once would pass a single call
            for _ in range(2):
                open_taps.begin_pass()
                try:
                    during = output()
                except Exception as error:
                    raise ContractError(f"the module raises {type(error).__name__} with {name}: {error}") from error
                if open_taps.unfired():
                    raise ContractError(f"{name} does not fire when the module runs")
                captured = open_taps[tap]
                has_gradient = any(tensor.requires_grad for tensor in nested_tensors(during))
                if has_gradient and not captured.requires_grad:
                    raise ContractError(f"{name} captures a tensor that no gradient flows through")
                # a tap such as AttentionTap may change how the module computes, so compare up to rounding
                if not _close(before, during, rtol=1e-4, atol=1e-5):
                    raise ContractError(f"the output of the module changes while {name} is open")
        if _hook_counts(module) != hooks:
            raise ContractError(f"{name} leaves a hook behind when it is closed")
        if not _close(before, output(), rtol=0.0, atol=0.0):
            raise ContractError(f"the output of the module changes after {name} is closed")


def _hook_counts(module: nn.Module) -> list[int]:
    """Return the number of forward hooks of every part of a module."""
    return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]


def _close(first: Any, second: Any, *, rtol: float, atol: float) -> bool:
    sides = [[*nested_tensors(output)] for output in (first, second)]
    return [tensor.shape for tensor in sides[0]] == [tensor.shape for tensor in sides[1]] and all(
        torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in zip(*sides, strict=True)
    )
