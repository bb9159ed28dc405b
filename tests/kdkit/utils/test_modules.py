"""Tests of running a network in eval mode temporarily, and of copying its state without wrappers."""

from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from kdkit.errors import RecipeError
from kdkit.utils.modules import copy_state, copy_with_module, eval_mode, load_state, preserve_buffers, weights_bytes
from tests.helpers.tiny import Mlp, tiny_net


def test_every_submodule_is_in_eval_mode_and_gets_its_mode_back_after_an_error():
    module = tiny_net("net").module.train()
    module.norm.eval()
    before = [submodule.training for submodule in module.modules()]
    inside = []

    def fail_in_eval_mode():
        with eval_mode(module):
            inside.extend(submodule.training for submodule in module.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_eval_mode()
    assert inside
    assert not any(inside)
    assert [submodule.training for submodule in module.modules()] == before


@pytest.mark.parametrize("integers", [True, False])
def test_buffers_are_restored_but_matrices_of_integers_only_if_they_are_asked_for(integers):
    module = nn.BatchNorm1d(2)
    for name, shape in (("zero_point", (3,)), ("weight_int8", (3, 2))):
        module.register_buffer(name, torch.zeros(shape, dtype=torch.int8))
    before = {name: value.clone() for name, value in module.named_buffers()}
    with preserve_buffers([module], integers=integers):
        module(torch.randn(8, 2))
        module.zero_point += 1
        module.weight_int8 += 1
    changed = {name for name, value in module.named_buffers() if not value.equal(before[name])}
    assert changed == (set() if integers else {"weight_int8"})


def test_an_object_without_a_mode_is_left_unchanged():
    with eval_mode(len):
        pass


def compiled(module):
    return torch.compile(module, backend="eager")


def with_wrapped_part(module):
    module.hidden = nn.DataParallel(compiled(module.hidden))
    return module


@pytest.mark.parametrize(
    "wrap",
    [compiled, nn.DataParallel, lambda module: compiled(nn.DataParallel(module)), with_wrapped_part],
    ids=["compiled", "parallel", "both", "a part"],
)
def test_state_has_the_keys_of_the_plain_module_and_loads_back(wrap):
    module = Mlp()
    plain = {key: value.clone() for key, value in module.state_dict().items()}
    state = copy_state(wrap(module))
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    target = wrap(Mlp())
    load_state(target, state)
    assert all(torch.equal(value, plain[key]) for key, value in copy_state(target).items())


def test_a_pruned_weight_is_that_of_the_state_that_was_loaded():
    module, other = (prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=6) for _ in range(2))
    load_state(module, copy_state(other))
    assert torch.equal(module.weight, other.weight)


def test_a_submodule_named_like_a_wrapper_keeps_its_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert copy_state(Named()).keys() == {"module.weight", "module.bias"}


def test_the_bytes_of_weights_leave_out_the_masks_of_pruned_ones():
    module = Mlp()
    before = weights_bytes(module)
    module.register_buffer("key_mask", torch.zeros(4))  # not of a pruned weight
    prune.l1_unstructured(module.hidden, "weight", amount=0.5)
    prune.l1_unstructured(module.hidden, "bias", amount=0.5)
    assert weights_bytes(module) == before + 16
    assert weights_bytes(nn.Sequential(module, module)) == before + 16  # shared ones count once


SET_FORWARDS = {
    "a decorated method": (lambda module: torch.no_grad()(module.forward), False),
    "a compiled method": (lambda module: torch.compile(module.forward, backend="eager"), False),
    "a closure": (lambda module: lambda inputs: module.weight.sum() * inputs, False),
    "a method": (lambda module: MethodType(lambda self, inputs: self.weight.sum() * inputs, module), True),
    "a partial": (lambda module: partial(module.forward), True),
    "a function of nothing": (lambda _module: lambda inputs: inputs, True),
}


@pytest.mark.parametrize(("make", "is_copied"), SET_FORWARDS.values(), ids=SET_FORWARDS)
def test_a_module_is_not_copied_if_the_copy_would_call_the_original(make, is_copied):
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].forward = make(module[0])
    if not is_copied:
        with pytest.raises(RecipeError, match="'forward' of a Linear is a function that holds the module itself"):
            copy_with_module(module, module)
        return
    copied = copy_with_module(module, module)
    expected = module(torch.ones(1, 2))
    nn.init.zeros_(module[0].weight)
    assert torch.equal(copied(torch.ones(1, 2)), expected)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_module_is_not_copied_if_a_hook_of_the_copy_would_change_the_original(kind):
    class Hooked(nn.Sequential):
        def __init__(self, *, by_method):
            super().__init__(nn.Linear(2, 2))
            register = getattr(self[0], f"register_{kind}_hook")
            register(self.keep if by_method else lambda *args: self.keep(*args))

        def keep(self, _module, *tensors):
            self.kept = tensors[-1]

    hooked = Hooked(by_method=False)
    with pytest.raises(RecipeError, match="'hook' of a Linear is a function that holds the module itself"):
        copy_with_module(hooked, hooked)
    hooked = Hooked(by_method=True)
    copied = copy_with_module(hooked, hooked)
    copied(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert hasattr(copied, "kept")
    assert not hasattr(hooked, "kept")


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def with_a_metric(module):
    import torchmetrics

    module.metric = torchmetrics.MeanMetric()  # which wraps its own methods, and wraps those of a copy again
    return module


@pytest.mark.parametrize(
    "wrap",
    [
        compiled_in_place,
        partial(torch.compile, backend="eager"),
        nn.utils.parametrizations.weight_norm,
        with_a_metric,
    ],
    ids=["compiled in place", "compiled", "parametrized", "with a metric"],
)
def test_a_module_of_a_library_with_functions_of_its_own_is_copied(wrap):
    module = wrap(nn.Linear(2, 2))
    copied = copy_with_module(module, module)
    expected = module(torch.ones(1, 2))
    nn.init.zeros_(module.bias)
    assert torch.equal(copied(torch.ones(1, 2)), expected)
