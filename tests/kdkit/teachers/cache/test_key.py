"""What recorded answers are kept under: whatever can change them changes the key, and nothing else does."""

import functools
import threading
import types
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from kdkit import Batch, Images, Inputs, Net, Tap
from kdkit.data.torch_data import TorchData
from kdkit.errors import CacheError
from kdkit.teachers.cache import facts_of_data, key_of
from kdkit.teachers.cache.digest import Digest
from tests.helpers.tiny import Mlp, samples, tiny_data

SCALE = 2.0
DATA = {"fingerprint": "a", "draws": 1}


class Teacher(Mlp):
    """With all that a state dict does not hold."""

    def __init__(self):
        super().__init__()
        self.temperature, self.sizes, self.options = 2.0, (3, (4, 5)), {"mode": "same"}
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.table = torch.arange(3)

    def forward(self, inputs):
        return super().forward(inputs) / self.temperature * SCALE


@dataclass(frozen=True)
class Shown:
    """A view with a setting."""

    by: float = 1.0
    key: str = "shown"

    def __call__(self, batch: Batch):
        return (batch.inputs * self.by * SCALE,), {}


def teacher():
    torch.manual_seed(0)
    return Net("teacher", Teacher(), view=Shown())


def key(net, taps=(), data=DATA, **how):
    return key_of(net, taps, data=data, how=how).digest


def changed(module, path, value):
    *parents, last = path.split(".")
    setattr(functools.reduce(getattr, parents, module), last, value)


def test_a_net_made_anew_has_the_same_key():
    assert key(teacher()) == key(teacher())


CHANGES = {
    "a weight": lambda module: module.head.weight.data[0, 0].add_(1e-6),
    "a buffer": lambda module: module.norm.running_mean[0].add_(1e-6),
    "a buffer that is not saved": lambda module: module.unsaved.mul_(2),
    "a tensor that is no buffer": lambda module: module.table.add_(1),
    "a number": lambda module: changed(module, "temperature", 3.0),
    "a number of a layer of torch": lambda module: changed(module, "norm.eps", 1e-3),
    "a tuple in a tuple": lambda module: changed(module, "sizes", (3, (4, 6))),
    "a dict": lambda module: module.options.update(mode="valid"),
    "a layer": lambda module: changed(module, "act", nn.GELU()),
    "the type of numbers": lambda module: module.double(),
    "a method of its own": lambda module: changed(module, "forward", types.MethodType(lambda self, x: x, module)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_teacher_has_another_key(change):
    net = teacher()
    before = key(net)
    with torch.no_grad():
        change(net.module)
    assert key(net) != before


def test_the_code_of_a_teacher_and_of_what_it_sees_is_in_the_key(monkeypatch):
    before = key(teacher())
    monkeypatch.setattr(Teacher, "forward", lambda self, inputs: Mlp.forward(self, inputs) / self.temperature * 3)
    other = key(teacher())
    assert other != before
    monkeypatch.setattr(Shown, "__call__", lambda self, batch: ((batch.inputs + 1,), {}))
    assert key(teacher()) not in (before, other)


def test_a_constant_that_the_code_refers_to_is_in_the_key(monkeypatch):
    before = key(teacher())
    monkeypatch.setitem(globals(), "SCALE", 2.5)
    assert key(teacher()) != before


def test_code_counts_and_not_the_name_of_its_module_or_its_lines():
    source = "class View:\n    key = 'k'\n    def __call__(self, batch):\n        return (batch.inputs * {},), {{}}\n"

    def view(number, name, comment=""):
        space = {"__name__": name}
        exec(comment + source.format(number), space)
        return Digest().add(space["View"](), "view").hexdigest()

    assert view(2, "mine") == view(2, "other", "# a word more\n")
    assert view(2, "mine") != view(3, "mine")


def test_what_a_teacher_sees_and_gives_is_in_the_key():
    net = teacher()
    views = [Inputs(), Shown(), Shown(by=2.0), Shown(key="other"), Images(), Images(mean=(0.5,))]
    elements = [None, 0, "logits", lambda value: value[0], lambda value: value[1]]
    nets = [Net("teacher", net.module, view=view) for view in views]
    nets += [Net("teacher", net.module, element=each) for each in elements[1:]]
    nets += [Net("teacher", net.module, classes=each) for each in (("a", "b", "c"), ("b", "a", "c"))]
    keys = [key(each) for each in nets]
    assert len(set(keys)) == len(keys)
    assert key(Net("another name", net.module)) == keys[0]


def test_the_taps_are_in_the_key():
    net = teacher()
    layer = net.module.hidden
    taps = [Tap(layer), Tap(net.module.norm), Tap(layer, "input"), Tap(layer, element=0)]
    taps.append(Tap(layer, channels_last=True))
    sets = [(), *((tap,) for tap in taps), tuple(taps[:2]), tuple(taps[1::-1])]
    keys = [key(net, each) for each in sets]
    assert len(set(keys)) == len(keys)


def test_how_and_about_what_it_was_asked_is_in_the_key():
    net = teacher()
    before = key(net, precision="fp32")
    assert key(net, precision="bf16") != before
    assert key(net, data={**DATA, "draws": 2}, precision="fp32") != before
    torch.set_float32_matmul_precision("medium")
    try:
        assert key(net, precision="fp32") != before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_callable_is_known_by_its_name_and_version():
    keys = [
        key(Net(name, function, version=version))
        for name, function, version in (("a", len, "1"), ("a", len, "2"), ("b", len, "1"))
    ]
    assert len(set(keys)) == 3


def test_every_sample_in_memory_is_in_the_facts_of_the_data():
    data = tiny_data(rows=5000)
    before, digest = facts_of_data(data), data.fingerprint
    data.train.dataset.tensors[0][2500, 0] += 1e-3
    again = TorchData(data.train.dataset, samples(rows=6, seed=1), classes=["a", "b", "c"])
    assert again.fingerprint != digest or facts_of_data(again) != before
    assert facts_of_data(again)["train_digest"] != before["train_digest"]


def test_data_that_cannot_be_told_apart_is_refused():
    stream = TorchData(torch.utils.data.DataLoader(samples(), 4), samples(seed=1))
    with pytest.raises(CacheError, match="have no ids"):
        facts_of_data(stream)
    data = tiny_data()
    data.draws = None
    with pytest.raises(CacheError, match="randomness is its own"):
        facts_of_data(data)
    twice = tiny_data()
    twice.train.ids = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(CacheError, match="not different"):
        facts_of_data(twice)


def test_what_cannot_be_keyed_is_refused_with_the_reason():
    @dataclass(frozen=True)
    class Strange:
        module: nn.Module

        def attach(self, put):
            raise NotImplementedError

    hooked, locked = teacher(), teacher()
    hooked.module.head.register_forward_hook(lambda *_: None)
    locked.module.guard = threading.Lock()
    with pytest.raises(CacheError, match=r"Teacher.head has a hook of its own"):
        key(hooked)
    with pytest.raises(CacheError, match=r"Teacher.guard is a lock"):
        key(locked)
    with pytest.raises(CacheError, match="a tap of it is a Strange"):
        key(teacher(), (Strange(nn.Linear(1, 1)),))
    with pytest.raises(CacheError, match="no part of its module"):
        key(teacher(), (Tap(nn.Linear(1, 1)),))


def test_open_taps_of_kdkit_do_not_change_the_key():
    net = teacher()
    before = key(net)
    detach = Tap(net.module.hidden).attach(lambda value: None)
    assert key(net) == before
    detach()


def test_hooks_of_torch_itself_are_in_the_key_by_what_they_do():
    def normed(eps):
        torch.manual_seed(0)
        return key(Net("t", nn.utils.spectral_norm(nn.Linear(3, 3), eps=eps).eval()))

    assert normed(1e-12) == normed(1e-12) != normed(1e-3)


def test_values_that_contain_themselves_and_shared_ones_have_a_digest():
    ring: list[object] = [1]
    ring.append(ring)
    module = Mlp()
    module.again = {"module": module, "ring": ring}
    digests = {Digest().add(each, "it").hexdigest() for each in (ring, module, [ring, ring], {1, 2}, frozenset((1, 2)))}
    assert len(digests) == 5
    assert Digest().add({"b", "a"}, "it").hexdigest() == Digest().add({"a", "b"}, "it").hexdigest()


def test_parameters_of_a_view_that_is_replaced_are_seen():
    view = Shown()
    assert key(Net("t", Mlp().eval(), view=view)) != key(Net("t", Mlp().eval(), view=replace(view, by=3.0)))
