"""Check a tap: what it hears, and that the module it sat on is left as it was."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import ContractError
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.nets.views import Inputs
from kdkit.utils.modules import eval_mode


def check_tap(make_tap: Callable[[nn.Module], TapLike], module: nn.Module, example: Any) -> None:
    """Check a tap on a module. Raises ContractError with the first thing that does not hold.

    make_tap: puts the tap on the module or on a part of it. example: the module's inputs, as a batch would hold them:
    a tensor, a tuple of arguments or a dict of keywords.

    Held to: it fires at each pass, with a tensor that gradients flow through; the module says the same with it as
    without, while it is open and after; no hook is left behind.
    """
    args, kwargs = Inputs()(Batch(example, torch.empty(0)))
    tap = make_tap(module)
    name = type(tap).__name__
    if not isinstance(tap, TapLike):
        raise ContractError(f"{name} is not a tap: it needs a module and attach(capture)")
    if all(tap.module is not each for each in module.modules()):
        raise ContractError(f"{name} sits on a {type(tap.module).__name__} that is no part of the module")
    with eval_mode(module), torch.random.fork_rng():
        before, hooks = module(*args, **kwargs), _hooks(module)
        with OpenTaps([tap]) as open_taps:
            for _ in range(2):
                open_taps.clear()
                try:
                    during = module(*args, **kwargs)
                except Exception as error:
                    raise ContractError(f"the module raises {type(error).__name__} with {name}: {error}") from error
                if open_taps.unfired():
                    raise ContractError(f"{name} does not fire when the module runs")
                heard = open_taps[tap]
                if _tensors(during)[0].requires_grad and not heard.requires_grad:
                    raise ContractError(f"{name} gives a tensor that no gradient flows through")
                if not _same(before, during):
                    raise ContractError(f"the module says something else while {name} is open")
        if _hooks(module) != hooks:
            raise ContractError(f"{name} leaves a hook behind when it is closed")
        if not _same(before, module(*args, **kwargs), exactly=True):
            raise ContractError(f"the module says something else after {name} was closed")


def _hooks(module: nn.Module) -> list[int]:
    return [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _same(one: Any, other: Any, *, exactly: bool = False) -> bool:
    """Whether two outputs are equal; up to rounding where a tap had the module compute in another way."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    rtol, atol = (0.0, 0.0) if exactly else (1e-4, 1e-5)
    return all(torch.allclose(first, second, rtol=rtol, atol=atol) for first, second in pairs)
