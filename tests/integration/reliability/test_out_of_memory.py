"""A run whose memory runs out ends with an error that names the settings that need less, and can be resumed."""

import sys
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit import KdkitError, Net, Recipe, Stage, TorchData
from kdkit.utils.memory import is_out_of_memory
from tests.helpers.stages import Small, data, epoch_terms, same, samples, training, truth

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def allocate_on_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def allocate_on_gpu():
    raise torch.OutOfMemoryError(OUT_OF_MEMORY)  # as torch does, also on a machine without a GPU


class Greedy(Small):
    """A network whose memory runs out for more than four samples, which a dry run has."""

    def __init__(self, allocate, *, mode="training"):
        super().__init__()
        self.allocate, self.mode, self.tensors = allocate, mode, []

    def forward(self, inputs):
        features = torch.zeros(3)
        self.tensors.append(weakref.ref(features))
        if len(inputs) > 4 and self.allocate is not None and self.training == (self.mode == "training"):
            self.allocate()
        return super().forward(inputs)


class EnoughMemory:
    """Gives the network enough memory until the end of an epoch."""

    def __init__(self, module, epoch):
        self.module, self.epoch, self.allocate = module, epoch, module.allocate
        module.allocate = None

    @kdkit.hookimpl
    def epoch_ended(self, event):
        if event.epoch == self.epoch:
            self.module.allocate = self.allocate


def recipe(module, split=None, **options):
    student = Net("student", module)
    return Recipe(data=split or data(), schedule=[Stage({student: truth()}, training(**options), name="second")])


def error_of(module, *, split=None, out=None, enough_until=None, **options):
    """Return the error of a run; until the end of epoch `enough_until` there is enough memory."""
    callbacks = [] if enough_until is None else [EnoughMemory(module, enough_until)]
    with pytest.raises(KdkitError) as raised:
        kdkit.run(lambda: recipe(module, split, **options), device="cpu", out=out, callbacks=callbacks)
    return raised.value


@pytest.mark.parametrize(
    ("allocate", "reason"),
    [(allocate_on_cpu, "DefaultCPUAllocator: can't allocate memory"), (allocate_on_gpu, OUT_OF_MEMORY)],
)
def test_the_error_names_the_stage_the_memory_and_settings_that_need_less(allocate, reason):
    lines = str(error_of(Greedy(allocate), accumulate_steps=3)).splitlines()
    assert lines[0].startswith("stage 'second': out of memory while training in batches of 8; cpu has ")
    assert lines[0].endswith("B left. What helps:")
    assert lines[1] == (
        "  - Training(batch_size=4, accumulate_steps=6): half a batch at a time, and as many samples per update"
    )
    assert lines[2].startswith("  - precision bf16 (--precision bf16")
    assert lines[3].startswith("  - Net('student', ..., recompute=[...])")
    assert len(lines) == 5
    assert lines[4].startswith("The error of torch: ")
    assert reason in lines[4]


def test_settings_that_the_run_has_already_are_not_proposed():
    student = Net("student", nn.Sequential(Greedy(allocate_on_gpu)), recompute=["0"])
    stage = Stage({student: truth()}, training(batch_size=9))
    with pytest.raises(KdkitError) as raised:
        kdkit.run(lambda: Recipe(data=data(), schedule=[stage]), device="cpu", precision="bf16")
    remedies = [line for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert remedies == [
        "  - Training(batch_size=4, accumulate_steps=2): half a batch at a time, and about as many samples per update"
    ]


@pytest.mark.parametrize("mode", ["validation", "evaluation"])
def test_an_error_while_predicting_does_not_propose_to_recompute(mode):
    module = Greedy(allocate_on_cpu, mode="predicting")
    error = error_of(module, enough_until=1 if mode == "evaluation" else None)
    assert "stage 'second': out of memory while predicting in batches of 8; cpu has" in str(error)
    assert "Training(batch_size=4, accumulate_steps=2)" in str(error)
    assert "recompute" not in str(error)


def test_the_batches_of_a_data_loader_are_halved_in_the_loader():
    split = TorchData(DataLoader(samples(32), batch_size=16), samples(24, 1), classes=("a", "b", "c"))
    # The dry run has a whole batch of the loader, so memory runs out in the second epoch.
    error = error_of(Greedy(allocate_on_gpu), split=split, enough_until=0)
    assert "out of memory while training in batches of 16" in str(error)
    assert "a DataLoader with batch_size=8, and Training(accumulate_steps=2)" in str(error)


def test_a_run_whose_memory_ran_out_is_resumed_to_the_same_bits(tmp_path):
    torch.manual_seed(0)
    modules = [Greedy(allocate) for allocate in (None, allocate_on_gpu, None)]
    for module in modules:
        module.load_state_dict(modules[0].state_dict())
    whole = kdkit.run(lambda: recipe(modules[0]), device="cpu")
    error = error_of(modules[1], out=tmp_path / "run", enough_until=0)
    assert f"a device with more memory, to resume the run in {tmp_path / 'run'} unchanged" in str(error)
    resumed = kdkit.run(lambda: recipe(modules[2]), out=tmp_path / "run", device="cpu", resume=True)
    assert epoch_terms(resumed.history) == epoch_terms(whole.history)
    assert same(resumed.student.module.state_dict(), whole.student.module.state_dict())


def test_the_error_keeps_no_tensor_of_the_failed_step():
    module = Greedy(allocate_on_gpu)
    error = error_of(module)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    assert all(tensor() is None for tensor in module.tensors)


def test_networks_that_do_not_fit_are_a_problem_of_the_stage():
    class Large(Small):
        def to(self, *_):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    (problem,) = kdkit.check(recipe(Large())).problems
    assert problem.startswith("stage 'second': a step with a few samples does not fit into memory; cpu has ")
    assert OUT_OF_MEMORY in problem


def test_other_errors_pass_unchanged():
    def fail():
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        kdkit.run(lambda: recipe(Greedy(fail)), device="cpu")
    assert not is_out_of_memory(RuntimeError("no such kernel"))


def test_the_command_line_prints_the_error_and_exits_with_2(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    result = kdkit_here("run", "mine.py", "--device", "cpu", "--out", "run", "--quiet")
    assert result.code == 2
    assert result.err.startswith("error: stage 'student': out of memory while training in batches of 8; cpu has ")
    assert "Traceback" not in result.err


RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth


class Greedy(nn.Linear):
    def forward(self, inputs):
        if len(inputs) > 4:
            torch.empty(2**60, dtype=torch.uint8)
        return super().forward(inputs)


def recipe() -> Recipe:
    data = TensorDataset(torch.ones(16, 4), torch.arange(16) % 3)
    stage = Stage({Net("student", Greedy(4, 3)): Truth(nn.CrossEntropyLoss())}, Training(epochs=1, batch_size=8))
    return Recipe(data=TorchData(data, data), schedule=[stage])
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_error_names_the_memory_of_the_gpu():
    def allocate():
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    with pytest.raises(KdkitError, match=r"cuda:0 has .* GB, of which .*B are in use, .*B by tensors of this process"):
        kdkit.run(lambda: recipe(Greedy(allocate)), device="cuda")


LIMITED = """
import resource
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth


def limit():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def in_torch():
    torch.ones(2**27, dtype=torch.float64)


def in_numpy():
    np.ones(2**27)


def in_python():
    bytearray(2**30)


class Network(nn.Linear):
    def forward(self, inputs):
        if len(inputs) > 4 and WHERE == "network":
            ALLOCATE()
        return super().forward(inputs)


class Samples(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, row):
        if row == 9 and WHERE == "dataset":
            ALLOCATE()
        return torch.ones(4), row % 3


def recipe() -> Recipe:
    limit()
    if WHERE == "recipe":
        ALLOCATE()
    data = TorchData(Samples(), TensorDataset(torch.ones(16, 4), torch.arange(16) % 3), classes=["a", "b", "c"])
    training = Training(epochs=1, batch_size=8, workers=WORKERS)
    return Recipe(data=data, schedule=[Stage({Net("student", Network(4, 3)): Truth(nn.CrossEntropyLoss())}, training)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
@pytest.mark.parametrize(
    ("where", "allocate", "workers"),
    [
        ("network", "in_torch", 0),
        ("network", "in_numpy", 0),
        ("network", "in_python", 0),
        ("dataset", "in_torch", 0),
        ("dataset", "in_python", 1),
    ],
)
def test_memory_that_really_runs_out_on_a_cpu_gives_the_same_advice(kdkit_process, tmp_path, where, allocate, workers):
    text = LIMITED.replace("WHERE", repr(where)).replace("ALLOCATE", allocate).replace("WORKERS", str(workers))
    (tmp_path / "mine.py").write_text(text)
    result = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "run", "--quiet")
    assert result.code == 2, result.err
    assert result.err.startswith("error: stage 'student': out of memory while training in batches of 8; cpu has ")
    assert " MB left. What helps:\n  - Training(batch_size=4, accumulate_steps=2)" in result.err
    assert "to resume the run in run unchanged" in result.err
    assert "Traceback" not in result.err


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_memory_that_runs_out_while_the_data_is_prepared_is_explained(kdkit_process, tmp_path):
    text = LIMITED.replace("WHERE", "'recipe'").replace("ALLOCATE", "in_numpy").replace("WORKERS", "0")
    (tmp_path / "mine.py").write_text(text)
    result = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "run", "--quiet")
    assert result.code == 2, result.err
    assert result.err.startswith("error: out of memory (")
    assert "; cpu has " in result.err
    assert "  - a Dataset that reads each sample when it is needed" in result.err
    assert "Traceback" not in result.err
