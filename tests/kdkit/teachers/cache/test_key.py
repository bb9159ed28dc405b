"""The key of cached outputs: everything that can change the outputs changes the key, and nothing else does."""

import copy
import functools
import subprocess
import sys
import threading
import types
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from kdkit import Batch, ClassifierTap, HeadTap, Images, Inputs, Net, Tap
from kdkit.data.torch_data import TorchData
from kdkit.errors import CacheError
from kdkit.nets.taps import OpenTaps
from kdkit.teachers.cache import compute_key, facts_of_data
from kdkit.teachers.cache.digest import Digest
from tests.helpers.command_line import environment
from tests.helpers.processes import run_python
from tests.helpers.tiny import Mlp, samples, tiny_data

SCALE = 2.0
DATA = {"fingerprint": "a", "draws": 1}


class Teacher(Mlp):
    """A module with state that is not in its state dict."""

    def __init__(self):
        super().__init__()
        self.temperature, self.sizes, self.options = 2.0, (3, (4, 5)), {"mode": "same"}
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.table = torch.arange(3)

    def forward(self, inputs):
        return super().forward(inputs) / self.temperature * SCALE


@dataclass(frozen=True)
class ScaledView:
    """A view with a setting."""

    factor: float = 1.0
    key: str = "scaled"

    def __call__(self, batch: Batch):
        return (batch.inputs * self.factor * SCALE,), {}


def teacher():
    torch.manual_seed(0)
    return Net("teacher", Teacher(), view=ScaledView())


def key(net, taps=(), data=DATA, **settings):
    return compute_key(net, taps, data=data, settings=settings).digest


def set_attribute(module, path, value):
    *parents, last = path.split(".")
    setattr(functools.reduce(getattr, parents, module), last, value)


def test_an_equal_net_has_the_same_key():
    assert key(teacher()) == key(teacher())


CHANGES = {
    "a weight": lambda module: module.head.weight.data[0, 0].add_(1e-6),
    "a buffer": lambda module: module.norm.running_mean[0].add_(1e-6),
    "a buffer that is not saved": lambda module: module.unsaved.mul_(2),
    "a tensor that is no buffer": lambda module: module.table.add_(1),
    "a number": lambda module: set_attribute(module, "temperature", 3.0),
    "a number of a layer of torch": lambda module: set_attribute(module, "norm.eps", 1e-3),
    "a tuple in a tuple": lambda module: set_attribute(module, "sizes", (3, (4, 6))),
    "a dict": lambda module: module.options.update(mode="valid"),
    "a layer": lambda module: set_attribute(module, "act", nn.GELU()),
    "the dtype": lambda module: module.double(),
    "a method of the instance": lambda module: set_attribute(
        module, "forward", types.MethodType(lambda self, x: x, module)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_teacher_has_another_key(change):
    net = teacher()
    before = key(net)
    with torch.no_grad():
        change(net.module)
    assert key(net) != before


def test_the_code_of_a_teacher_and_of_its_view_is_in_the_key(monkeypatch):
    before = key(teacher())
    monkeypatch.setattr(Teacher, "forward", lambda self, inputs: Mlp.forward(self, inputs) / self.temperature * 3)
    changed = key(teacher())
    assert changed != before
    monkeypatch.setattr(ScaledView, "__call__", lambda self, batch: ((batch.inputs + 1,), {}))
    assert key(teacher()) not in (before, changed)


def test_a_constant_that_the_code_refers_to_is_in_the_key(monkeypatch):
    before = key(teacher())
    monkeypatch.setitem(globals(), "SCALE", 2.5)
    assert key(teacher()) != before


def test_the_name_of_the_module_and_line_numbers_are_not_in_the_key(tmp_path):
    source = "class View:\n    key = 'k'\n    def __call__(self, batch):\n        return (batch.inputs * {},), {{}}\n"

    def view(factor, name, comment=""):
        path = tmp_path / f"{name}.py"
        path.write_text(comment + source.format(factor))
        namespace = {"__name__": name}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        return Digest().add(namespace["View"](), "view").hexdigest()

    assert view(2, "first") == view(2, "second", "# a comment above\n")
    assert view(2, "first") != view(3, "first")


def test_the_view_the_element_and_the_classes_are_in_the_key():
    net = teacher()
    views = [Inputs(), ScaledView(), ScaledView(factor=2.0), ScaledView(key="other"), Images(), Images(mean=(0.5,))]
    elements = [
        0,
        "logits",
        lambda value: value[0],
        lambda value: value[1],
    ]
    nets = [Net("teacher", net.module, view=view) for view in views]
    nets += [Net("teacher", net.module, element=element) for element in elements]
    nets += [Net("teacher", net.module, classes=classes) for classes in (("a", "b", "c"), ("b", "a", "c"))]
    keys = [key(variant) for variant in nets]
    assert len(set(keys)) == len(keys)
    assert key(Net("another name", net.module)) == keys[0]


def test_the_taps_are_in_the_key():
    net = teacher()
    layer = net.module.hidden
    taps = [Tap(layer), Tap(net.module.norm), Tap(layer, "input"), Tap(layer, element=0)]
    taps += [Tap(layer, channels_last=True), Tap(layer, call=0), Tap(layer, call=1)]
    taps.append(HeadTap(layer))
    taps += [ClassifierTap(layer, classifier=classifier) for classifier in (net.module.head, nn.Linear(5, 3))]
    sets = [(), *((tap,) for tap in taps), tuple(taps[:2]), tuple(taps[1::-1])]
    keys = [key(net, taps) for taps in sets]
    assert len(set(keys)) == len(keys)


def test_an_inferred_order_of_the_channels_is_in_the_key_as_the_same_order_that_is_chosen():
    net = teacher()
    inferred, last, second = (Tap(net.module.hidden, channels_last=option) for option in (None, True, False))
    with OpenTaps([inferred], [net]):
        net.module.hidden(torch.randn(2, 5, net.module.hidden.in_features))
    assert key(net, [inferred]) == key(net, [last])
    assert key(net, [inferred]) != key(net, [second])


def test_the_settings_of_the_run_and_the_data_are_in_the_key():
    net = teacher()
    before = key(net, precision="fp32")
    assert key(net, precision="bf16") != before
    assert key(net, data={**DATA, "draws": 2}, precision="fp32") != before
    torch.set_float32_matmul_precision("medium")
    try:
        assert key(net, precision="fp32") != before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_plain_callable_counts_by_its_name_and_version():
    keys = [
        key(Net(name, function, version=version))
        for name, function, version in (("a", len, "1"), ("a", len, "2"), ("b", len, "1"))
    ]
    assert len(set(keys)) == 3


def test_the_attributes_of_a_net_are_no_facts_of_a_subclass():
    assert "subclass" not in compute_key(teacher(), (), data=DATA, settings={}).facts["net"]


def test_two_keys_show_by_eye_which_part_of_a_teacher_changed(monkeypatch):
    def facts():
        return compute_key(teacher(), (), data=DATA, settings={}).facts["net"]

    before = facts()
    assert {"Teacher.forward", "Mlp.forward"} <= set(before["code"])
    assert any(package.startswith("torch ") for package in before["packages"])
    monkeypatch.setattr(Teacher, "forward", lambda self, inputs: inputs)
    after = facts()
    assert after["tensors"] == before["tensors"]
    assert after["code"] != before["code"]


def test_every_sample_in_memory_is_in_the_facts_of_the_data():
    data = tiny_data(rows=5000)
    before, fingerprint = facts_of_data(data), data.fingerprint
    data.train.dataset.tensors[0][2500, 0] += 1e-3
    changed = TorchData(data.train.dataset, samples(rows=6, seed=1), classes=["a", "b", "c"])
    assert changed.fingerprint != fingerprint or facts_of_data(changed) != before
    assert facts_of_data(changed)["train_digest"] != before["train_digest"]


def test_data_whose_samples_cannot_be_identified_is_refused():
    stream = TorchData(torch.utils.data.DataLoader(samples(), 4), samples(seed=1))
    with pytest.raises(CacheError, match="have no ids"):
        facts_of_data(stream)
    data = tiny_data()
    data.draws = None
    with pytest.raises(CacheError, match="the number of draws of the data is unknown"):
        facts_of_data(data)
    repeated = tiny_data()
    repeated.train.ids = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(CacheError, match="ids of the training split are not unique"):
        facts_of_data(repeated)


def test_a_teacher_that_cannot_be_keyed_is_refused_with_the_reason(tmp_path):
    @dataclass(frozen=True)
    class UserTap:
        module: nn.Module

        def attach(self, put):
            raise NotImplementedError

    hooked, locked, reading, sparse = teacher(), teacher(), teacher(), teacher()
    hooked.module.head.register_forward_hook(lambda *_: None)
    locked.module.guard = threading.Lock()
    sparse.module.table = torch.eye(2).to_sparse()
    with pytest.raises(CacheError, match=r"Teacher.head has a user-defined forward hook \(.*<lambda>\)"):
        key(hooked)
    with pytest.raises(CacheError, match=r"Teacher.guard is a lock, whose contents cannot be read"):
        key(locked)
    with (tmp_path / "file").open("w") as reading.module.log, pytest.raises(CacheError, match=r"Teacher.log is a Text"):
        key(reading)
    with pytest.raises(CacheError, match=r"Teacher.table is a tensor whose bytes cannot be read"):
        key(sparse)
    with pytest.raises(CacheError, match="a tap of it is a UserTap"):
        key(teacher(), (UserTap(nn.Linear(1, 1)),))
    with pytest.raises(CacheError, match="not part of its module"):
        key(teacher(), (Tap(nn.Linear(1, 1)),))


def test_a_module_that_holds_a_dataset_is_refused():
    net = teacher()
    net.module.everything = [[number] for number in range(200_001)]
    with pytest.raises(CacheError, match="leads to more than 200,000 values"):
        key(net)


def test_open_taps_of_kdkit_do_not_change_the_key():
    net = teacher()
    before = key(net)
    detach = Tap(net.module.hidden).attach(lambda value: None)
    assert key(net) == before
    detach()


def test_hooks_of_torch_itself_are_in_the_key_by_their_settings():
    def normed(eps):
        torch.manual_seed(0)
        return key(Net("t", nn.utils.spectral_norm(nn.Linear(3, 3), eps=eps).eval()))

    assert normed(1e-12) == normed(1e-12) != normed(1e-3)


def test_values_that_contain_themselves_and_shared_ones_have_a_digest():
    ring: list[object] = [1]
    ring.append(ring)
    module = Mlp()
    module.again = {"module": module, "ring": ring}
    values = (ring, module, [ring, ring], {1, 2}, frozenset((1, 2)))
    assert len({Digest().add(value, "it").hexdigest() for value in values}) == 5
    assert Digest().add({"b", "a"}, "it").hexdigest() == Digest().add({"a", "b"}, "it").hexdigest()


def test_a_partial_has_the_same_digest_again():
    partial = functools.partial(torch.relu)  # whose `__dict__` appears when it is first read
    assert len({Digest().add(partial, "partial").hexdigest() for _ in range(2)}) == 1


def test_a_recurrent_teacher_has_a_key_that_changes_with_its_weights():
    net = Net("teacher", nn.LSTM(2, 3))
    before = key(net)
    assert key(Net("teacher", copy.deepcopy(net.module))) == before
    with torch.no_grad():
        net.module.weight_hh_l0[0, 0] += 1
    assert key(net) != before


def test_the_attributes_of_a_view_are_in_the_key():
    view = ScaledView()
    assert key(Net("t", Mlp().eval(), view=view)) != key(Net("t", Mlp().eval(), view=replace(view, factor=3.0)))


IN_PROCESS = """
import functools, torch
from torch import nn
from kdkit import Net
from kdkit.teachers.cache import compute_key

MODES = {"same", "valid", "full"}

class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.act, self.sizes = nn.Linear(3, 3), functools.partial(torch.relu), frozenset("abc")

    def forward(self, x):
        return self.act(self.layer(x)) if "same" in MODES else x

print(compute_key(Net("teacher", Teacher()), (), data={}, settings={}).digest)
"""


def test_the_key_is_the_same_in_every_process(tmp_path):
    (tmp_path / "teacher.py").write_text(IN_PROCESS)
    new = subprocess.run(
        [sys.executable, "teacher.py"],
        cwd=tmp_path,
        env=environment(PYTHONHASHSEED="1"),  # which decides the order of a set
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    keys = [new.stdout, run_python(["teacher.py"], tmp_path).stdout]  # the second has the hash seed of the tests
    assert keys[0] == keys[1]
    assert len(keys[0].strip()) == 64
