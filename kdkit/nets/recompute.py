"""Recompute the activations of submodules in the backward pass, instead of keeping them until then."""

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdkit.utils.overrides import Override


class Recomputation:
    """Recomputes the activations of modules in each backward pass, until `close` (Chen et al. 2016).

    Losses, gradients, buffers and random states are those of a run without it. It replaces the `forward` of the objects
    alone, so hooks and the keys of state dicts stay. Several may be open for a module; the last `close` restores it.
    Models of transformers keep no cache of keys and values meanwhile, to which a second pass would add its own.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._forwards: dict[nn.Module, _RecomputedForward] = {}
        self._ran: set[nn.Module] = set()
        configs: dict[int, Any] = {}  # by their ids, since the layers of a model share one
        for module in modules:
            for part in module.modules():
                config = getattr(part, "config", None)
                if getattr(config, "use_cache", None) is True:
                    configs[id(config)] = config
            forward = vars(module).get("forward")
            if not isinstance(forward, _RecomputedForward):
                forward = _RecomputedForward(module)
                module.forward = forward
            forward.users.append(self)
            self._forwards[module] = forward
        self._caches = [Override(config, "use_cache", value=False) for config in configs.values()]

    def unused(self) -> list[nn.Module]:
        """Return the modules that never ran with gradients."""
        return [module for module in self._forwards if module not in self._ran]

    def note_run(self, module: nn.Module) -> None:
        """Note that a module ran with gradients."""
        self._ran.add(module)

    def close(self) -> None:
        """Restore the `forward` of each module, unless another recomputation of it is open."""
        for forward in self._forwards.values():
            forward.users.remove(self)
            if not forward.users:
                forward.restore()
        self._forwards = {}
        for cache in self._caches:
            cache.close()


class _RecomputedForward:
    """The `forward` of a module that recomputes its activations."""

    def __init__(self, module: nn.Module) -> None:
        self.users: list[Recomputation] = []
        self._module = module
        # A forward that user code has set on the object is restored; usually there is none.
        self._is_on_object = "forward" in vars(module)
        self._forward = module.forward
        functools.update_wrapper(self, self._forward)

    def restore(self) -> None:
        """Give the module its own `forward` again."""
        del self._module.forward
        if self._is_on_object:
            self._module.forward = self._forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        buffers: list[_Buffers] = []  # empty until the first pass

        def run_pass(*values: Any) -> Any:
            keywords = dict(zip(kwargs, values[len(args) :], strict=True))
            if torch.compiler.is_compiling():  # compiled code changes no buffer twice
                return self._forward(*values[: len(args)], **keywords)
            if buffers:
                with buffers[0]:
                    return self._forward(*values[: len(args)], **keywords)
            for user in self.users:
                user.note_run(self._module)
            buffers.append(_Buffers(self._module))
            return self._forward(*values[: len(args)], **keywords)

        # All as positional arguments, since torch restores the random states of the devices of these only.
        return checkpoint(run_pass, *args, *kwargs.values(), use_reentrant=False)


class _Buffers(AbstractContextManager[None]):
    """The buffers of a module before its first pass; inside the context, the module has copies of them.

    A second pass so begins with the buffers of the first one, and leaves no trace. Otherwise a batch norm would update
    its running statistics twice, and a spectral norm would go on to the next step of its power iteration.
    """

    def __init__(self, module: nn.Module) -> None:
        # All buffers, since a batch norm changes its statistics without a new `_version`.
        self._before = [
            (part._buffers, name, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._after: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def __enter__(self) -> None:
        # Other tensors in their place, since autograd would notice if the buffers were written to.
        self._after = [(buffers, name, buffers[name]) for buffers, name, _ in self._before]
        for buffers, name, values in self._before:
            buffers[name] = values.clone()  # copied again, since there may be several backward passes

    def __exit__(self, *_: object) -> None:
        for buffers, name, buffer in self._after:
            buffers[name] = buffer
