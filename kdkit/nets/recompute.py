"""Recompute the activations of submodules in the backward pass instead of storing them."""

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

    Losses, gradients, buffers and random states are the same as without it. Only the `forward` of each module object is
    replaced, so hooks and state dict keys do not change. Several recomputations may be open for one module; the last
    `close` restores it. The key-value cache of transformers models is disabled: a second pass would append to it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._forwards: dict[nn.Module, _RecomputedForward] = {}
        self.ran: set[nn.Module] = set()  # with gradients
        configs: dict[int, Any] = {}  # by id, because the layers of a model share their config
        for module in dict.fromkeys(modules):  # one module may have two names
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
        return [module for module in self._forwards if module not in self.ran]

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
        # User code may have set a `forward` on the object, which is then restored.
        self._is_on_object = "forward" in vars(module)
        self._forward = module.forward
        functools.update_wrapper(self, self._forward)

    def restore(self) -> None:
        """Restore the module's own `forward`."""
        del self._module.forward
        if self._is_on_object:
            self._module.forward = self._forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        buffers: list[_Buffers] = []  # empty until the first pass

        def run_pass(*values: Any) -> Any:
            keywords = dict(zip(kwargs, values[len(args) :], strict=True))
            if torch.compiler.is_compiling():  # compiled code does not change buffers twice
                return self._forward(*values[: len(args)], **keywords)
            if buffers:
                with buffers[0]:
                    return self._forward(*values[: len(args)], **keywords)
            for user in self.users:
                user.ran.add(self._module)
            buffers.append(_Buffers(self._module))
            return self._forward(*values[: len(args)], **keywords)

        # All are positional arguments: torch restores the random states of their devices only.
        return checkpoint(run_pass, *args, *kwargs.values(), use_reentrant=False)


class _Buffers(AbstractContextManager[None]):
    """The buffers of a module before its first pass; inside the context, the module has copies of them.

    A second pass then starts with the buffers of the first pass, and its changes are discarded. Otherwise, batch norm
    would update its running statistics twice, and spectral norm would run another step of its power iteration.
    """

    def __init__(self, module: nn.Module) -> None:
        # All buffers are copied: batch norm changes its statistics without a new `_version`.
        self._before = [
            (part._buffers, name, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._after: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def __enter__(self) -> None:
        # The buffers are replaced, not written to: autograd would detect an in-place change.
        self._after = [(buffers, name, buffers[name]) for buffers, name, _ in self._before]
        for buffers, name, values in self._before:
            buffers[name] = values.clone()  # copied again, because there may be several backward passes

    def __exit__(self, *_: object) -> None:
        for buffers, name, buffer in self._after:
            buffers[name] = buffer
