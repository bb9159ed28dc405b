"""Code that a teacher reaches is in the key of its cached outputs, or the teacher is refused with a reason."""

import array
import ctypes
import functools
import importlib
import linecache
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Net
from kdkit.errors import CacheError
from kdkit.teachers.cache import compute_key, facts_of_data, source
from kdkit.teachers.cache.digest import Digest
from tests.helpers.tiny import tiny_data

HELPER = "K = {}\ndef scale(x):\n    return x * K\n"
USER_MODULES = ("user_package", "user_helper")
TEACHER = "class Teacher(nn.Module):\n"
FORWARD = TEACHER + "    def forward(self, x):\n"


def key(module):
    return compute_key(Net("teacher", module), (), data={"fingerprint": "a", "draws": 1}, settings={}).digest


@pytest.fixture
def make(tmp_path):
    """Return a function that runs a source file and calls the class or function `name` of it."""

    def run_file(source, name="Teacher"):
        path = tmp_path / f"recipe_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        namespace = {"__name__": "recipe", "torch": torch, "nn": nn}
        exec(compile(source, str(path), "exec"), namespace)
        return namespace[name]()

    return run_file


@pytest.fixture
def key_with_helper(tmp_path, monkeypatch, make):
    """Return a function that computes the key of a teacher next to user-defined modules, which scale by a number."""
    folder = tmp_path / "modules"
    (folder / "user_package").mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def compute(source, factor):
        forget_user_modules()
        for name in ("user_helper.py", "user_package/ops.py"):
            (folder / name).write_text(HELPER.format(factor))
        (folder / "user_package" / "__init__.py").write_text("def __getattr__(name): raise AttributeError(name)\n")
        importlib.invalidate_caches()
        module = make(source)
        assert module(torch.ones(1)).item() == factor  # this runs imports inside functions
        return key(module)

    yield compute
    forget_user_modules()


def forget_user_modules():
    for name in [name for name in sys.modules if name.split(".")[0] in USER_MODULES]:
        del sys.modules[name]


REACHED = {
    "of a module": "import user_helper\n" + FORWARD + "        return user_helper.scale(x)\n",
    "of a module in a package": "import user_package.ops\n" + FORWARD + "        return user_package.ops.scale(x)\n",
    "in a comprehension": "import user_package.ops\n"
    + FORWARD
    + "        return [user_package.ops.scale(y) for y in (x,)][0]\n",
    "in a nested lambda": "import user_helper as h\n" + FORWARD + "        return (lambda: h.scale(x))()\n",
    "from an enclosing function": "def around():\n    import user_helper as h\n    return lambda x: h.scale(x)\n"
    "f = around()\n" + FORWARD + "        return f(x)\n",
    "in the body of a class": FORWARD + "        class A:\n            by = scale\n        return A.by(x)\n"
    "from user_helper import scale\n",
}


@pytest.mark.parametrize("source", REACHED.values(), ids=REACHED)
def test_a_function_of_an_imported_module_is_in_the_key(source, key_with_helper):
    keys = [key_with_helper(source, factor) for factor in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


IMPORTED_IN_A_FUNCTION = {
    "a module": FORWARD + "        import user_helper\n        return user_helper.scale(x)\n",
    "a package": FORWARD + "        import user_package.ops\n        return user_package.ops.scale(x)\n",
    "a function": FORWARD + "        from user_helper import scale as by, K\n        return by(x)\n",
    "a module of a package": FORWARD + "        from user_package import ops as o\n        return o.scale(x)\n",
    "under another name": FORWARD + "        import user_package.ops as o\n        return o.scale(x)\n",
    "in an inner function": FORWARD + "        import user_helper as h\n        return (lambda: h.scale(x))()\n",
    "to another variable": FORWARD
    + "        import user_helper\n        ops = user_helper\n        return ops.scale(x)\n",
}


@pytest.mark.parametrize("source", IMPORTED_IN_A_FUNCTION.values(), ids=IMPORTED_IN_A_FUNCTION)
def test_a_user_defined_module_that_is_imported_in_a_function_is_refused(source, key_with_helper):
    with pytest.raises(CacheError, match=r"imports \w+(.ops)? inside a function; import it at the top of the file"):
        key_with_helper(source, 2)


LATE_DYNAMIC = {
    "os": "import os as o\n        return (lambda: o.environb[b'K'])()\n",
    "sys": "from sys import modules\n        return modules['torch'].relu(x)\n",
}


@pytest.mark.parametrize("name", LATE_DYNAMIC)
def test_modules_that_give_access_to_any_value_are_refused_inside_a_function(name, make):
    with pytest.raises(CacheError, match=rf"imports {name} inside a function"):
        key(make(FORWARD + "        " + LATE_DYNAMIC[name]))


def test_a_module_that_is_not_loaded_is_refused_and_an_installed_one_is_not(make):
    with pytest.raises(CacheError, match="imports does_not_exist inside a function"):
        key(make(FORWARD + "        import does_not_exist\n"))
    with pytest.raises(CacheError, match=r"imports \.ops inside a function"):
        key(make(FORWARD + "        from .ops import scale\n        return scale(x)\n"))
    assert key(make(FORWARD + "        import torch.nn as layers\n        return layers.functional.relu(x)\n"))


USED_AS_VALUE = {
    "an attribute": "import user_helper\n" + TEACHER + "    ops = user_helper\n"
    "    def forward(self, x):\n        return self.ops.scale(x)\n",
    "an argument": "import user_helper\ndef by(ops, x):\n    return ops.scale(x)\n"
    + FORWARD
    + "        return by(user_helper, x)\n",
    "a package's": "import user_package.ops\n"
    + FORWARD
    + "        ops = user_package.ops\n        return ops.scale(x)\n",
}


@pytest.mark.parametrize("source", USED_AS_VALUE.values(), ids=USED_AS_VALUE)
def test_a_module_that_is_used_as_a_value_is_refused(source, key_with_helper):
    with pytest.raises(
        CacheError, match=r"the module user_\w+(.ops)?, used as a value, .*; use its functions and values"
    ):
        key_with_helper(source, 2)


DYNAMIC = {
    "os.environ": "import os\n" + FORWARD + "        return x * float(os.environ['K'])\n",
    "os.getenv": "from os import getenv as k\n" + FORWARD + "        return x * float(k('K'))\n",
    "os.environb": "import os as o\n" + FORWARD + "        return (lambda: o.environb[b'K'])()\n",
    "sys.modules": "from sys import modules\n" + FORWARD + "        return modules['torch'].relu(x)\n",
    "importlib.import_module": "import importlib as i\n"
    + FORWARD
    + "        return i.import_module('torch').relu(x)\n",
    "globals": FORWARD + "        return globals()['torch'].relu(x)\n",
    "eval": FORWARD + "        return [eval('y') for y in x]\n",
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_values_that_are_looked_up_under_computed_names_are_refused(name, make):
    with pytest.raises(
        CacheError, match=rf"uses {name}, which can read any value; read the values elsewhere, and pass them"
    ):
        key(make(DYNAMIC[name]))


def test_methods_and_variables_of_the_same_names_are_not_refused(make):
    source = "import os, sys\n" + FORWARD + "        self.eval()\n        exec = os.path.join(sys.prefix, os.sep)\n"
    assert key(make(source + "        return x, exec, self.environ, self.modules\n"))


@pytest.mark.parametrize("command", ["", "print('the code of python -c')\n"], ids=["unknown", "of the command"])
def test_code_whose_source_cannot_be_read_is_refused(command, monkeypatch):
    # As Python 3.13 does for `python -c`; other versions have no such entry.
    monkeypatch.setitem(linecache.cache, "<string>", (len(command), None, command.splitlines(True), "<string>"))
    namespace = {"__name__": "recipe", "nn": nn}
    exec(FORWARD + "        return 2 * x\n", namespace)  # as code that is typed at a prompt
    with pytest.raises(CacheError, match=r"the source of Teacher.forward cannot be read; define it in a file"):
        key(namespace["Teacher"]())


def test_code_of_a_dataclass_whose_source_cannot_be_read_is_refused():
    namespace = {"__name__": "recipe"}
    exec("from dataclasses import dataclass\n@dataclass\nclass A:\n    def __call__(self, x): return x\n", namespace)
    with pytest.raises(CacheError, match=r"the source of A.__call__ cannot be read"):
        Digest().add(namespace["A"](), "it")


def test_a_file_that_was_edited_after_it_was_imported_is_refused(make, tmp_path):
    module = make(FORWARD + "        return 2 * x\n")
    assert key(module)
    (path,) = tmp_path.iterdir()
    path.write_text(FORWARD + "        return 33 * x\n")
    with pytest.raises(
        CacheError, match=r"Teacher.forward is not the code that runs; if .* was edited, restart Python"
    ):
        key(module)


def test_a_line_that_the_teacher_does_not_use_is_not_in_the_key(make):
    source = "A = {}\ndef unused():\n    return {}\nB = 2\n" + FORWARD + "        return B * x\n"
    assert key(make(source.format(1, 2))) == key(make(source.format(3, 4)))
    assert key(make(source.format(1, 2))) != key(make(source.format(1, 2).replace("B = 2", "B = 3")))


def test_lambdas_that_start_on_one_line_are_refused(make):
    apart = make("Teacher = lambda: [\n    lambda x: x,\n    lambda x: 2 * x,\n]\n")
    assert len({Digest().add(function, "it").hexdigest() for function in apart}) == 2
    together = make("Teacher = lambda: fs\nfs = [lambda x: x, lambda x: 2 * x]\n")
    with pytest.raises(CacheError, match="one of several lambdas that start on one line; put each on its own line"):
        Digest().add(together[0], "it")


def test_a_recipe_that_is_called_like_a_module_of_python_is_in_the_key(tmp_path):
    def named(name, factor):
        path = tmp_path / f"{name}{factor}.py"
        path.write_text(FORWARD + f"        return {factor} * x\n")
        namespace = {"__name__": name, "nn": nn}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        return key(namespace["Teacher"]())

    assert "antigravity" not in sys.modules
    assert named("antigravity", 2) == named("antigravity", 2) != named("antigravity", 3)


def test_a_function_of_a_library_around_user_code_is_in_the_key(make):
    source = "import contextlib\ndef f(x):\n    yield {} * x\nTeacher = lambda: contextlib.contextmanager(f)\n"

    def without_wraps(factor):
        function = make(source.format(factor))
        function.__module__ = "contextlib"  # as if the library had not used functools.wraps
        del function.__wrapped__
        return key(Holds(function))

    assert without_wraps(2) == without_wraps(2) != without_wraps(3)


class Marked(np.ndarray):
    pass


def marked(value, factor):
    value.factor = factor
    return value


class Holds(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Figures(array.array):
    pass


def noted(number):
    def function():
        return function.number

    function.number = number
    return function


def no_grad_function(factor):
    @torch.no_grad()  # a function of torch around a user-defined one
    def scale(x):
        return factor * x

    return scale


VALUES = {
    "a dict's method": lambda factor: {"a": factor}.get,
    "a dict's own method": lambda factor: {"a": factor}.__getitem__,
    "a tensor's method": lambda factor: torch.tensor(factor).mul,
    "a C number": lambda factor: ctypes.c_int(factor),
    "an array of a user-defined class": lambda factor: Figures("d", [factor]),
    "an attribute of a function": noted,
    "an attribute of a tensor": lambda factor: marked(torch.ones(1), factor),
    "an attribute of a parameter": lambda factor: marked(nn.Parameter(torch.ones(1)), factor),
    "an attribute of an array": lambda factor: marked(np.ones(1).view(Marked), factor),
    "an argument of a partial": lambda factor: functools.partial(torch.mul, other=factor),
    "a closure": no_grad_function,
    "an object": lambda factor: types.SimpleNamespace(config=[{"scale": factor}]),
    "a set": lambda factor: {"a", "b", factor},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_everything_that_a_value_holds_is_in_the_key(value):
    keys = [key(Holds(value(factor))) for factor in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


ENUM = "import enum\nclass Act(enum.Enum):\n    A = 1\n    {}\nTeacher = lambda: Act.A\n"
SOURCES = {
    "an enum's method": ENUM.format("def do(self, x): return x * {}"),
    "an enum's property": ENUM.format("factor = property(lambda self: {})"),
    "an enum's member": ENUM.format("B = {}"),
    "a wrapper that has a library's name": "import functools\n@functools.wraps(nn.functional.softmax)\ndef f(x):\n"
    "    return {} * x\nTeacher = lambda: f\n",
    "a method of a number": "class Number(float):\n    def __call__(self, x):\n        return {} * x\n"
    "Teacher = lambda: Number(2)\n",
    "a class method with underscores": "class A:\n    @classmethod\n    def __length_hint__(cls):\n"
    "        return {}\nTeacher = lambda: A()\n",
    "a static method": "class A:\n    @staticmethod\n    def f(x):\n        return {} * x\nTeacher = lambda: A()\n",
    "a cached property": "import functools\nclass A:\n    @functools.cached_property\n    def f(self):\n"
    "        return {}\nTeacher = lambda: A()\n",
    "a cached function": "import functools\n@functools.lru_cache\ndef f(x):\n    return {} * x\nTeacher = lambda: f\n",
    "a default argument": "def f(x, factor={}):\n    return factor * x\nTeacher = lambda: f\n",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_code_of_a_value_is_in_the_key(source, make):
    keys = [key(Holds(make(source.format(factor)))) for factor in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


def test_a_submodule_that_stays_in_training_mode_is_in_the_key():
    module = nn.Sequential(nn.Dropout()).eval()
    before = key(module)
    module[0].train()
    assert key(module) != before
    assert key(module.eval()) == before


def test_a_subclass_of_net_is_in_the_key():
    def doubled(factor):
        class Doubled(Net):
            def outputs_of(self, module, batch):
                return factor * super().outputs_of(module, batch)

        return Doubled("teacher", linear)

    linear = nn.Linear(3, 3)
    nets = [Net("teacher", linear), *map(doubled, (2, 3, 3))]
    keys = [compute_key(net, (), data={}, settings={}).digest for net in nets]
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


def test_a_graph_of_torch_fx_counts_by_the_code_that_was_generated_from_it():
    def traced(factor):
        class Teacher(nn.Module):
            def forward(self, x):
                for _ in range(300):  # deeper than Python recurses
                    x = x + factor
                return x

        return key(torch.fx.symbolic_trace(Teacher()))

    assert traced(2) == traced(2) != traced(3)


def test_the_code_of_augmentations_is_in_the_facts_of_the_data(make):
    def facts(factor):
        data = tiny_data()
        data.augment = (make(f"class Louder:\n    def __call__(self, x): return x * {factor}\n", "Louder"),)
        return facts_of_data(data)

    assert facts(2) == facts(2) != facts(3)
    assert facts(2) != facts_of_data(tiny_data())


def test_functions_and_types_of_libraries_have_a_digest():
    functions = (len, torch.relu, torch.softmax, nn.functional.gelu, nn.functional.max_pool2d, torch.Tensor.add)
    values = (
        *functions,
        np.sin,
        np.mean,
        int | str,
        tuple[int],
        torch.float32,
        torch.device("cpu"),
    )
    for value in values:
        assert Digest().add(value, "it").hexdigest() == Digest().add(value, "it").hexdigest()


def test_code_of_packages_in_another_folder_counts_by_its_version(tmp_path, monkeypatch):
    """As with `pip install --target`, or a torch outside the environment's own site-packages."""
    metadata = tmp_path / "libs" / "far_away-1.5.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.5\n")
    (metadata / "RECORD").write_text("far/__init__.py,,\nfar_away-1.5.dist-info/RECORD,,\n")
    for name in ("far", "mine"):
        (tmp_path / "libs" / name).mkdir()
        (tmp_path / "libs" / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "libs"))
    source.package_of_file.cache_clear()
    assert source.package_of_file(str(tmp_path / "libs" / "far" / "__init__.py")) == "far-away 1.5"
    assert source.package_of_file(str(tmp_path / "libs" / "mine" / "__init__.py")) is None  # no installer put it there
    assert source.package_of_file(str(tmp_path / "elsewhere.py")) is None
