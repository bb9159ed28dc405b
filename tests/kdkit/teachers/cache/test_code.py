"""Code that a teacher reaches in whatever way is in the key of its answers, and where it cannot be it is refused."""

import array
import ctypes
import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Net
from kdkit.errors import CacheError
from kdkit.teachers.cache import facts_of_data, key_of
from kdkit.teachers.cache.digest import Digest
from tests.helpers.tiny import tiny_data

HELPER = "K = {}\ndef scale(x):\n    return x * K\n"
TEACHER = "class Teacher(nn.Module):\n"


def key(module):
    return key_of(Net("teacher", module), (), data={"fingerprint": "a", "draws": 1}, how={}).digest


def made(source, name="Teacher"):
    space = {"__name__": "recipe", "torch": torch, "nn": nn}
    exec(source, space)
    return space[name]()


@pytest.fixture
def helped(tmp_path, monkeypatch):
    """Return what makes a teacher beside a module `helper`, and a package with `ops`, that scale by a number."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_pkg").mkdir()

    def make(source, by):
        for name in [each for each in sys.modules if each.split(".")[0] in ("own_pkg", "own_helper")]:
            del sys.modules[name]
        for name in ("own_helper.py", "own_pkg/ops.py"):
            (tmp_path / name).write_text(HELPER.format(by))
        (tmp_path / "own_pkg" / "__init__.py").write_text("def __getattr__(name): raise AttributeError(name)\n")
        importlib.invalidate_caches()
        module = made(source)
        assert module(torch.ones(1)).item() == by  # which loads what is imported late
        return key(module)

    yield make
    for name in [each for each in sys.modules if each.split(".")[0] in ("own_pkg", "own_helper")]:
        del sys.modules[name]


FORWARD = TEACHER + "    def forward(self, x):\n"
WAYS = {
    "of a module": "import own_helper\n" + FORWARD + "        return own_helper.scale(x)\n",
    "of a module in a package": "import own_pkg.ops\n" + FORWARD + "        return own_pkg.ops.scale(x)\n",
    "in a comprehension": "import own_pkg.ops\n" + FORWARD + "        return [own_pkg.ops.scale(y) for y in (x,)][0]\n",
    "imported late": FORWARD + "        import own_helper\n        return own_helper.scale(x)\n",
    "of a package imported late": FORWARD + "        import own_pkg.ops\n        return own_pkg.ops.scale(x)\n",
    "taken late": FORWARD + "        from own_helper import scale as by, K\n        return by(x)\n",
    "taken late from a package": FORWARD + "        from own_pkg import ops as o\n        return o.scale(x)\n",
    "imported late by another name": FORWARD + "        import own_pkg.ops as o\n        return o.scale(x)\n",
    "in a function in a function": FORWARD + "        import own_helper as h\n        return (lambda: h.scale(x))()\n",
    "imported around": "def around():\n    import own_helper as h\n    return lambda x: h.scale(x)\nf = around()\n"
    + FORWARD
    + "        return f(x)\n",
    "in the body of a class": FORWARD + "        class A:\n            by = scale\n        return A.by(x)\n"
    "from own_helper import scale\n",
}


@pytest.mark.parametrize("source", WAYS.values(), ids=WAYS)
def test_a_function_that_is_reached_through_imports_is_in_the_key(source, helped):
    keys = [helped(source, by) for by in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


HELD = {
    "an attribute": "import own_helper\n" + TEACHER + "    ops = own_helper\n"
    "    def forward(self, x):\n        return self.ops.scale(x)\n",
    "an argument": "import own_helper\ndef by(ops, x):\n    return ops.scale(x)\n"
    + FORWARD
    + "        return by(own_helper, x)\n",
    "a package's": "import own_pkg.ops\n" + FORWARD + "        ops = own_pkg.ops\n        return ops.scale(x)\n",
    "imported late": FORWARD + "        import own_helper\n        ops = own_helper\n        return ops.scale(x)\n",
}


@pytest.mark.parametrize("source", HELD.values(), ids=HELD)
def test_a_module_that_is_held_as_a_value_is_refused(source, helped):
    with pytest.raises(CacheError, match=r"the module own_\w+(.ops)?, from which anything may be taken; "):
        helped(source, 2)


def test_what_is_imported_late_is_refused_until_it_is_loaded_and_what_is_nowhere_counts_as_that(helped):
    helped(WAYS["of a module"], 2)
    del sys.modules["own_helper"]
    with pytest.raises(CacheError, match="imports own_helper, which is not loaded yet; import it at the top"):
        key(made(WAYS["imported late"]))
    assert key(made(FORWARD + "        import nowhere_at_all\n"))


SEARCHES = {
    "os.environ": "import os\n" + FORWARD + "        return x * float(os.environ['K'])\n",
    "os.getenv": "from os import getenv as k\n" + FORWARD + "        return x * float(k('K'))\n",
    "os.environb": FORWARD + "        import os as o\n        return (lambda: o.environb[b'K'])()\n",
    "sys.modules": FORWARD + "        from sys import modules\n        return modules['torch'].relu(x)\n",
    "importlib.import_module": "import importlib as i\n"
    + FORWARD
    + "        return i.import_module('torch').relu(x)\n",
    "globals": FORWARD + "        return globals()['torch'].relu(x)\n",
    "eval": FORWARD + "        return [eval('y') for y in x]\n",
}


@pytest.mark.parametrize("name", SEARCHES)
def test_what_finds_values_that_no_code_names_is_refused(name):
    with pytest.raises(CacheError, match=rf"{name}, by which it may find anything; give it the values instead"):
        key(made(SEARCHES[name]))


def test_methods_and_variables_that_are_called_like_it_are_not():
    source = "import os, sys\n" + FORWARD + "        self.eval()\n        exec = os.path.join(sys.prefix, os.sep)\n"
    assert key(made(source + "        return x, exec, self.environ, self.modules\n"))


class Marked(np.ndarray):
    pass


def marked(value, by):
    value.by = by
    return value


class Holds(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Figures(array.array):
    pass


def enum_with(method):
    return made(f"import enum\nclass Act(enum.Enum):\n    A = 1\n    {method}\nTeacher = lambda: Act.A\n")


def wrapped(by):
    source = f"import functools\n@functools.wraps(nn.functional.softmax)\ndef f(x):\n    return {by} * x\n"
    return made(source + "Teacher = lambda: f\n")


def noted(number):
    def function():
        return function.number

    function.number = number
    return function


def number_that(by):
    source = f"class Own(float):\n    def __call__(self, x):\n        return {by} * x\n"
    return made(source + "Teacher = lambda: Own(2)\n")


VALUES = {
    "a dict's method": lambda by: {"a": by}.get,
    "a dict's own method": lambda by: {"a": by}.__getitem__,
    "a tensor's method": lambda by: torch.tensor(by).mul,
    "a C number": lambda by: ctypes.c_int(by),
    "an array of a class of one's own": lambda by: Figures("d", [by]),
    "an enum's method": lambda by: enum_with(f"def do(self, x): return x * {by}"),
    "an enum's property": lambda by: enum_with(f"by = property(lambda self: {by})"),
    "a wrapper that bears a library's name": wrapped,
    "an attribute of a function": noted,
    "a method of a number": number_that,
    "an attribute of a tensor": lambda by: marked(torch.ones(1), by),
    "an attribute of a parameter": lambda by: marked(nn.Parameter(torch.ones(1)), by),
    "an attribute of an array": lambda by: marked(np.ones(1).view(Marked), by),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_all_that_a_value_holds_is_in_the_key(value):
    keys = [key(Holds(value(by))) for by in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


def test_a_part_that_stays_in_training_is_in_the_key():
    module = nn.Sequential(nn.Dropout()).eval()
    before = key(module)
    module[0].train()
    assert key(module) != before
    assert key(module.eval()) == before


def test_a_net_that_answers_in_a_way_of_its_own_is_in_the_key():
    def doubled(by):
        class Doubled(Net):
            def through(self, module, batch):
                return by * super().through(module, batch)

        return Doubled("teacher", linear)

    linear = nn.Linear(3, 3)
    nets = [Net("teacher", linear), *map(doubled, (2, 3, 3))]
    keys = [key_of(net, (), data={}, how={}).digest for net in nets]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


def test_an_autocast_around_the_run_is_in_the_key():
    linear = nn.Linear(3, 3)
    before = key(linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert key(linear) != before
    assert key(linear) == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this torch has one precision for all kernels")
def test_the_precision_of_kernels_is_in_the_key():
    linear, conv = nn.Linear(3, 3), torch.backends.mkldnn.conv
    before = key(linear)
    precision, conv.fp32_precision = conv.fp32_precision, "bf16"
    try:
        assert key(linear) != before
    finally:
        conv.fp32_precision = precision


def test_a_graph_of_torch_fx_counts_by_what_was_compiled_from_it():
    def traced(by):
        class Teacher(nn.Module):
            def forward(self, x):
                for _ in range(300):  # deeper than Python recurses
                    x = x + by
                return x

        return key(torch.fx.symbolic_trace(Teacher()))

    assert traced(2) == traced(2) != traced(3)


def test_the_code_that_changes_samples_is_in_the_facts_of_the_data():
    def facts(by):
        data = tiny_data()
        data.augment = (made(f"class Louder:\n    def __call__(self, x): return x * {by}\n", "Louder"),)
        return facts_of_data(data)

    assert facts(2) == facts(2) != facts(3)
    assert facts(2) != facts_of_data(tiny_data())


def test_functions_of_libraries_have_a_digest():
    for function in (len, torch.relu, torch.softmax, nn.functional.gelu, nn.functional.max_pool2d, torch.Tensor.add):
        assert Digest().add(function, "it").hexdigest() == Digest().add(function, "it").hexdigest()
