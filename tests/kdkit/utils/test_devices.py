"""Tests of the use of TF32 and of devices; options of a run test `find_device` further."""

import pytest
import torch

from kdkit import Net, RecipeError
from kdkit.teachers.cache.key import compute_key
from kdkit.utils.devices import find_device, uses_tf32

new_settings = pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="this version of torch has the older settings only"
)


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
