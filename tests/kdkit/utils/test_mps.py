"""Tests that no tensor is float64 on MPS, which has no such tensors, with fake tensors in place of the device."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdkit.data.batch import to_device
from kdkit.engine.measurement.layer_similarity import _kernel
from kdkit.engine.stage import gradient_stats
from kdkit.engine.training.meters import RunningMeans
from kdkit.losses.margins import channel_margins
from kdkit.recipe.balancing.surgery import ConflictAverse
from kdkit.utils import randomness
from tests.helpers.balancing import trained


class RefusesFloat64(TorchDispatchMode):
    """Raises TypeError for each tensor on MPS that is float64, as torch does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, torch.Tensor) and value.device.type == "mps" and value.dtype == torch.float64:
                raise TypeError("MPS does not support float64")
        return results


@contextmanager
def emulated_mps():
    with FakeTensorMode(), RefusesFloat64():
        yield torch.device("mps")


def test_float64_is_refused_by_the_emulated_device():
    with emulated_mps() as device, pytest.raises(TypeError, match="float64"):
        torch.ones(3, device=device).double()


def test_margins_kernels_and_gradient_statistics_are_computed(monkeypatch):
    monkeypatch.setattr(gradient_stats, "norms_and_cosines", lambda gradients: (gradients.sum(1),) * 2)
    with emulated_mps() as device:
        assert channel_margins(torch.ones(3, device=device), torch.ones(3, device=device)).device.type == "mps"
        assert _kernel(torch.ones(4, 3, device=device)).device.type == "cpu"
        stats = gradient_stats.GradientStats(1, ("a", "b"), [nn.Parameter(torch.ones(3, device=device))])
        stats._accumulated = torch.ones(2, 3, device=device), torch.ones((), device=device)
        stats.close()
        assert stats.state_dict()["sums"].dtype == torch.float32


def test_means_and_balancers_convert_values_on_the_cpu():
    with emulated_mps() as device:
        means = RunningMeans()
        means.add({"truth": torch.ones((), device=device)}, 4)
        with pytest.raises(DataDependentOutputException):  # fake tensors have no values: they have come to the CPU
            means.values(torch.device("cpu"))
        with pytest.raises(RuntimeError):
            ConflictAverse(trained({}), 0.5).coefficients(torch.ones(2, 2, device=device))


def test_float64_samples_become_float32(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **_: moved.append((tensor.dtype, device.type)))
    to_device({"x": torch.ones(2, dtype=torch.float64)}, torch.device("mps"))
    to_device(torch.ones(2, dtype=torch.float64), torch.device("cuda"))
    assert moved == [(torch.float32, "mps"), (torch.float64, "cuda")]


def test_a_checkpoint_has_the_random_state_of_the_device(monkeypatch):
    device, states = torch.device("mps"), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    randomness.set_rng_state(randomness.rng_state(device), device)
    assert states == [torch.tensor([7])]
