"""Tests of the use of TF32 and of devices; options of a run test `find_device` further."""

import pytest
import torch

from kdkit import Net, RecipeError
from kdkit.teachers.cache.key import compute_key
from kdkit.utils.devices import copy_to_cpu, find_device, uses_tf32

new_settings = pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="this version of torch has the older settings only"
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def settings():
    owners = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [owner.fp32_precision for owner in owners]
    yield owners
    for owner, precision in zip(owners, before, strict=True):
        owner.fp32_precision = precision


@new_settings
@pytest.mark.parametrize("convolutions", ["tf32", "ieee"])
@pytest.mark.parametrize("products", ["tf32", "ieee"])
def test_tf32_is_read_from_the_new_settings_of_torch_also_if_they_contradict_the_older_ones(
    convolutions, products, settings
):
    cudnn, matmul = settings
    cudnn.fp32_precision, matmul.fp32_precision = convolutions, products
    assert uses_tf32() == {"convolutions": convolutions == "tf32", "matrix products": products == "tf32"}


@new_settings
def test_the_key_of_cached_outputs_depends_on_tf32(settings):
    net, keys = Net("teacher", torch.nn.Linear(2, 2)), set()
    for precision in ("tf32", "ieee"):
        settings[1].fp32_precision = precision
        keys.add(str(compute_key(net, (), data={}, settings={})))
    assert len(keys) == 2


def test_tf32_is_read_from_the_older_settings_of_torch(monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert uses_tf32()["matrix products"]
    finally:
        torch.set_float32_matmul_precision(before)
    assert not uses_tf32()["matrix products"]


def test_a_missing_device_is_refused_with_those_of_a_mac(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(RecipeError, match=r"device 'cuda:9' is not available \(there are: cpu, (cuda:\d, )*mps\)"):
        find_device("cuda:9")


@pytest.mark.gpu
@needs_cuda
def test_copies_on_the_cpu_need_little_memory_of_the_gpu():
    tensors = [torch.zeros(2**16, device="cuda") for _ in range(40)]  # 10 MB
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    copy_to_cpu([*tensors, *(torch.zeros(2**10, device="cuda") for _ in range(40))])
    assert torch.cuda.max_memory_allocated() - before < 2**20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
def test_copies_on_the_cpu_have_the_values_and_do_not_change(device):
    weight = torch.nn.Parameter(torch.randn(3, 4, device=device))
    tensors = [
        weight,
        weight.detach().t(),  # another view of it
        torch.arange(5, device=device)[::2],
        torch.tensor(2.5, device=device),
        torch.empty(0, 3, device=device),
        torch.randn(600, 600, device=device),  # large
        torch.randn(2, 3, 4, 5, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        torch.tensor([True, False], device=device),
    ]
    copies = copy_to_cpu(tensors)
    assert len({copy.untyped_storage().data_ptr() for copy in copies if copy.numel()}) == len(tensors) - 1
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.device.type == "cpu"
        assert not copy.requires_grad
        assert torch.equal(copy, tensor.detach().cpu())
        assert copy.untyped_storage().nbytes() == tensor.nbytes  # it does not keep the other tensors in memory
    before = copies[0].clone()
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(copies[0], before)
