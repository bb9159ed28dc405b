"""Run a network temporarily and restore its modes and buffers; copy and load its state without wrappers."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.errors import RecipeError
from kdkit.utils.devices import copy_to_cpu

T = TypeVar("T")


@contextmanager
def eval_mode(module: object) -> Iterator[None]:
    """Put a module in eval mode, and restore the mode of every submodule at the end, even after an error.

    An object that is not an `nn.Module`, such as a teacher behind an API, has no mode and is left unchanged.
    """
    if not isinstance(module, nn.Module):
        yield
        return
    # module.train() would set one mode for all submodules; user code may keep some, such as batch norms, in eval mode.
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        try:
            module.eval()
        except NotImplementedError:  # a program of torch.export keeps the mode in which it was exported
            for submodule in modes:
                submodule.training = False
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


@contextmanager
def forward_hook(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call a hook with the module, its inputs and its output, after each forward pass of these modules."""
    with ExitStack() as handles:
        for module in modules:
            handles.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def preserve_buffers(modules: Iterable[nn.Module], *, integers: bool = True) -> Iterator[None]:
    """Restore every buffer at the end, whether it was changed in place or replaced.

    integers: whether buffers of integers are restored too if they have several dimensions. Those may be the weights of
    a quantized network, and take most of the memory.
    """
    # `_buffers` rather than `named_buffers`, which skips buffers that are None and may be assigned in the context.
    saved = [
        (submodule, name, buffer, None if buffer is None or is_read_only(buffer) else buffer.clone())
        for module in modules
        for submodule in module.modules()
        for name, buffer in submodule._buffers.items()
        if integers or buffer is None or buffer.ndim < 2 or buffer.is_floating_point() or buffer.is_complex()
    ]
    try:
        yield
    finally:
        for submodule, name, buffer, values in saved:
            submodule._buffers[name] = buffer
            if buffer is not None and values is not None:
                with torch.no_grad():
                    if buffer.shape != values.shape:  # such as the ranges of channels that a first forward pass sizes
                        buffer.resize_(values.shape)
                    buffer.copy_(values)


def is_read_only(tensor: Tensor) -> bool:
    """Return whether torch refuses to change a tensor in place: one that is expanded, or is of inference mode."""
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return False
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return is_expanded or tensor.is_inference()


def drop_compiled_code(modules: Iterable[object]) -> None:
    """Let torch.compile compile again if one of these modules is compiled, after hooks were registered in them.

    Code that was compiled without hooks has no guard on them: it would keep running without calling them.
    """
    parts = (part for module in modules if isinstance(module, nn.Module) for part in module.modules())
    # wrapped by torch.compile(module), or compiled in place by module.compile()
    if any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in parts):
        torch._dynamo.reset()  # resets all compiled code, because torch has no other way


def reshard(module: nn.Module) -> None:
    """Free the whole weights that `fully_shard` keeps after a pass that no backward pass follows.

    Until then, `module.parameters()` are not the parameters that an optimizer must get.
    """
    for part in module.modules():
        if _is_sharded(part):
            part.reshard()  # type: ignore[operator]  # a method of FSDPModule


def is_sharded(module: nn.Module) -> bool:
    """Return whether `fully_shard` was applied to a module, or to a part of it."""
    return any(map(_is_sharded, module.modules()))


def _is_sharded(part: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(part).__mro__)  # the class takes a second to import


def copy_with_module(holder: T, module: nn.Module) -> T:
    """Return a deep copy of an object that holds a module, or of the module.

    Weights that hooks compute before each forward pass, as of pruned layers, are copied without their graph, which
    torch cannot copy. Raises RecipeError if the copy would call functions that hold the module itself.
    """
    parts = {*module.modules()}
    values = [value for part in parts if part._forward_pre_hooks for value in vars(part).values()]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    copied = copy.deepcopy(holder, memo)  # adds the copy of each part to `memo`
    for part in module.modules():
        if id(part) not in memo:  # such as a part of a TorchScript module, which copies its parts itself
            continue
        kinds = (part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks)
        hooks = [("hook", hook) for kind in kinds for hook in kind.values()]
        for name, value in [*vars(memo[id(part)]).items(), *hooks]:
            if isinstance(value, FunctionType) and _holds(value, parts, set()):
                raise RecipeError(
                    f"{name!r} of a {type(part).__name__} is a function that holds the module itself, with which a "
                    "copy would compute; make it a method of the class, or pass types.MethodType(function, module); "
                    "instead of module.forward = torch.compile(module.forward), call module.compile()"
                )
    return copied


def _holds(value: Any, parts: Collection[nn.Module], seen: set[int]) -> bool:
    """Return whether a function, method or partial refers to one of the modules, also through other functions."""
    if isinstance(value, nn.Module):
        return value in parts
    if id(value) in seen:
        return False
    seen.add(id(value))
    held: list[Any] = []
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        held = [*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, MethodType):
        held = [value.__self__, value.__func__]
    elif isinstance(value, partial):
        held = [value.func, *value.args, *value.keywords.values()]
    return any(_holds(item, parts, seen) for item in held)


def weights_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a module, without masks of pruned weights.

    Those that submodules share count once.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    masks = pruning_masks(named)
    tensors = {tensor for name, tensor in named.items() if name not in masks}
    return sum(stored.numel() * stored.element_size() for tensor in tensors for stored in stored_tensors(tensor))


def pruning_masks(names: Collection[str]) -> set[str]:
    """Return the names of the masks of `torch.nn.utils.prune`, by which layers multiply their weights."""
    pruned = [name.removesuffix("_mask") for name in names if name.endswith("_mask")]
    return {f"{name}_mask" for name in pruned if f"{name}_orig" in names}


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the values of a tensor: itself, or the integers and scales of a quantized weight."""
    if not is_traceable_wrapper_subclass(tensor) or type(tensor).__name__ == "DTensor":
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from stored_tensors(getattr(tensor, name))


def parameters_behind(tensors: Iterable[Tensor]) -> set[Tensor]:
    """Return the parameters that a backward pass from these tensors would reach, without computing any gradient."""
    reached: set[Tensor] = set()
    seen: set[Any] = set()
    nodes = [tensor.grad_fn for tensor in tensors]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # set on the node of a leaf
        if isinstance(variable, Tensor):
            reached.add(variable)
        nodes += [following for following, _ in node.next_functions]
    return reached


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled code runs as plain Python code."""
    # Importing dynamo takes seconds, and without it nothing is compiled. Keys of a teacher cache must not depend on
    # sys.modules.
    return torch.compiler.set_stance("force_eager") if "_dynamo" in torch.__dict__ else nullcontext()


def plain_keys(module: nn.Module) -> dict[str, str]:
    """Map the key that each tensor of a module has without wrappers to its actual key.

    Wrappers are torch.compile, DataParallel and DistributedDataParallel, which add "_orig_mod." or "module.".
    """
    wrappers = []  # the prefix of the keys inside each wrapper, and its replacement
    for path, submodule in module.named_modules(remove_duplicate=False):
        outer = f"{path}." if path else ""
        if "_orig_mod" in submodule._modules:  # the class of compiled modules takes seconds to import
            wrappers.append((f"{outer}_orig_mod.", outer))
        elif isinstance(submodule, nn.DataParallel | DistributedDataParallel):
            wrappers.append((f"{outer}module.", outer))
    keys = {}
    for key in module.state_dict():
        plain = key
        for inner, outer in reversed(wrappers):  # from the inside out, so that the outer prefixes still match
            plain = outer + plain.removeprefix(inner) if plain.startswith(inner) else plain
        keys[plain] = key
    return keys


def keys_by_tensor(named: Iterable[tuple[str, Tensor]]) -> list[list[str]]:
    """Return the keys of each tensor; a tied one has several."""
    keys: dict[int, list[str]] = {}
    for key, tensor in named:
        keys.setdefault(id(tensor), []).append(key)
    return [*keys.values()]


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict by plain keys."""
    state = module.state_dict()
    return {plain: state[key] for plain, key in plain_keys(module).items()}


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state dict by plain keys on the CPU, which later training does not change."""
    state = plain_state(module)
    return dict(zip(state, copy_to_cpu(list(state.values())), strict=True))


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with plain keys, such as that of `copy_state`."""
    keys = plain_keys(module)
    load_state_dict(module, {keys.get(plain, plain): value for plain, value in state.items()})


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict. Buffers that a forward pass has assigned or resized get the shapes that they have in it.

    Raises ValueError in one line if it does not fit.
    """
    device = next((parameter.device for parameter in module.parameters()), None)
    for path, submodule in module.named_modules():
        for name, buffer in submodule._buffers.items():
            value = state.get(f"{path}.{name}" if path else name)
            if isinstance(value, Tensor) and (buffer is None or buffer.shape != value.shape):
                submodule._buffers[name] = torch.empty_like(value, device=device)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # its first line does not name the keys
        raise ValueError(" ".join(str(error).split())) from error
    recompute_weights(module)


def recompute_weights(module: nn.Module) -> None:
    """Compute the weights that each forward pass computes first: pruned ones, and those of the old `weight_norm`."""
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | WeightNorm):
                hook(part, ())
