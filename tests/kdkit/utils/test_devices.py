"""Tests of the use of TF32; options of a run test `find_device`."""

import pytest
import torch

from kdkit import Net
from kdkit.teachers.cache.key import compute_key
from kdkit.utils.devices import uses_tf32

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
