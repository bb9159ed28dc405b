"""State that the processes of a run share: pasts, memory banks of losses, and the gradients of projectors."""

import math

import pytest
import torch

from tests.helpers.ranks import in_two_processes

# One of two processes: it observes one batch, and then has the outputs that the other process observed.
RANK = """
import sys

import torch
from torch import distributed, nn

from kdkit import Batch, BuildContext, Net, Past
from kdkit.utils.collectives import all_gather, all_reduce_mean
from kdkit.teachers import open_teacher

number, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
net = Net("student", nn.Linear(2, 3))
session = open_teacher(Past(net), (), BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True))
ids = torch.arange(3) if number == 0 else torch.tensor([5, 4])
batch = Batch(torch.zeros(len(ids), 2), ids % 3, ids)
session.dry_run(batch)
session.observe(batch, {"student": ids[:, None] + torch.zeros(1, 3)})
session.on_epoch_end()
teacher_output = session(Batch(torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), torch.arange(8)))
result = {"gathered": all_gather(ids), "averaged": all_reduce_mean(torch.tensor([float(number), 4.0]))}
torch.save({"output": teacher_output.output[:, 0], "mask": teacher_output.mask, **result}, f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_the_past_of_all_samples_is_known_in_each_process(tmp_path):
    in_two_processes(RANK, tmp_path)
    for number in range(2):
        result = torch.load(tmp_path / f"{number}.pt")
        # Process 0 observed the samples 0, 1 and 2, and process 1 the samples 5 and 4.
        assert result["mask"].tolist() == [True, True, True, False, True, True, False, False]
        assert result["output"][result["mask"]].tolist() == [0, 1, 2, 4, 5]
        assert result["gathered"].tolist() == [0, 1, 2, 5, 4]
        assert result["averaged"].tolist() == [0.5, 4.0]


# Half of a batch in each of two processes, or the whole batch in one process.
CONTRAST = """
import sys

import torch
from torch import distributed

from kdkit.losses import CRD
from kdkit import BuildContext

number, folder = int(sys.argv[1]), sys.argv[2]
context = BuildContext(classes=("a", "b"), task="multiclass", samples=6, ids=True)
generator = torch.Generator().manual_seed(0)
features = torch.randn(2, 2, 4, 3, generator=generator)


def learn(half):
    torch.manual_seed(0)
    loss = CRD(width=None, negatives=3)
    loss.build((torch.Size((4, 3)),), (torch.Size((4, 3)),), context, None)
    for step, (student, target) in enumerate(features):
        ids = torch.tensor([0, 1, 2, 3]) + step
        loss(student[half], target[half], ids=ids[half], labels=ids[half] % 2)
    return loss.state_dict()


whole = learn(slice(None))
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
torch.save((whole, learn(slice(2 * number, 2 * number + 2))), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_the_memory_banks_and_normalisers_of_crd_are_the_same_in_two_processes_as_in_one(tmp_path):
    in_two_processes(CONTRAST, tmp_path)
    for number in range(2):
        whole, shared = torch.load(tmp_path / f"{number}.pt")
        assert whole["memories"].abs().sum() > 0
        for key, value in whole.items():
            torch.testing.assert_close(shared[key], value)


# Batches of which only process 0 has rows, only process 1, none, and both. For Masked, the mask selects the rows.
UNEVEN = """
import sys

import torch
from torch import distributed, nn

from kdkit import BuildContext
from kdkit.losses import CRD, Masked, QueueKL

number, folder = int(sys.argv[1]), sys.argv[2]
context = BuildContext(classes=("a", "b"), task="multiclass", samples=8, ids=True)
features = torch.randn(4, 2, 4, 3, generator=torch.Generator().manual_seed(0))
BATCHES = ((slice(3), slice(0)), (slice(0), slice(3)), (slice(0), slice(0)), (slice(2), slice(2, 4)))


def learn(loss, processes):
    torch.manual_seed(0)
    loss.build((torch.Size((4, 3)),), (torch.Size((4, 3)),), context, None)
    values = []
    for step, ((student, target), halves) in enumerate(zip(features, BATCHES, strict=True)):
        rows = torch.cat([torch.arange(4)[halves[process]] for process in processes])
        student.requires_grad_()
        if isinstance(loss, CRD):
            values.append(loss(student[rows], target[rows], ids=rows + step, labels=rows % 2))
        else:
            values.append(loss(student, target, inputs={"attention_mask": torch.zeros(4).index_fill(0, rows, 1.0)}))
        values[-1].backward()
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    return state, torch.stack(values).detach(), [parameter.grad for parameter in loss.parameters()]


make = {"crd": lambda: CRD(width=2, negatives=3), "masked": lambda: Masked(QueueKL(size=6))}
whole = {name: learn(loss(), (0, 1)) for name, loss in make.items()}
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
torch.save((whole, {name: learn(loss(), (number,)) for name, loss in make.items()}), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    in_two_processes(UNEVEN, folder)
    return folder


@pytest.mark.parametrize("name", ["crd", "masked"])
def test_processes_without_rows_take_part_in_what_the_others_remember(uneven, name):
    for number in range(2):
        whole, shared = (results[name] for results in torch.load(uneven / f"{number}.pt"))
        for key, expected in whole[0].items():
            torch.testing.assert_close(shared[0][key], expected, msg=key)
        # the process without rows has the value 0, and a gradient of each weight
        assert (shared[1] == 0).tolist() == [number == 1, number == 0, True, False]
        assert torch.equal(shared[1][number], whole[1][number])
        assert all(gradient.isfinite().all() for gradient in shared[2])


# A run of which each batch has one labelled sample or none, so that a process has none in most steps.
FEW_LABELS = """
import sys

import torch
from torch import distributed, nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import CRD

number, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)


class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs).relu())


def samples(count, labelled):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) % 3
    labels[torch.arange(count) % labelled != 0] = -100
    return TensorDataset(inputs, labels)


def recipe():
    teacher, student = Net("teacher", Small(5), trained=True), Net("student", Small(4))
    taps = {"student": Tap(student.module.body), "target": Tap(teacher.module.body)}
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, CRD(width=2, negatives=4), **taps)
    data = TorchData(samples(32, 5), samples(9, 1), classes=("a", "b", "c"), ignore_index=-100)
    return kdkit.Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=2, batch_size=4))])


distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
if number == 1:
    kdkit.check(recipe)  # alone
result = kdkit.run(recipe, device="cpu")
torch.save((result.history["student"], result.student.module.state_dict()), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_a_run_with_crd_ends_if_a_process_has_no_labelled_sample_in_a_batch(tmp_path):
    in_two_processes(FEW_LABELS, tmp_path)
    (history, first), (_, second) = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert all(math.isfinite(value) for epoch in history for value in epoch["terms"].values())
    for key, value in first.items():
        assert torch.equal(second[key], value), key


# The queue of QueueKL after two batches, of which each process has a half, or the whole of one process.
QUEUE = """
import sys

import torch
from torch import distributed

from kdkit import BuildContext
from kdkit.losses import QueueKL

number, folder = int(sys.argv[1]), sys.argv[2]
context = BuildContext(classes=("a", "b"), task="multiclass", samples=6, ids=True)
features = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))


def learn(half):
    torch.manual_seed(0)
    loss = QueueKL(size=6)
    loss.build((torch.Size((4, 3)),), (torch.Size((4, 3)),), context, None)
    value = [loss(student[half], target[half]) for student, target in features][-1]
    return loss.state_dict(), value.detach()


whole = learn(slice(None))
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
torch.save((whole, learn(slice(2 * number, 2 * number + 2))), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_the_queue_is_the_same_in_two_processes_as_in_one(tmp_path):
    in_two_processes(QUEUE, tmp_path)
    values = []
    for number in range(2):
        (whole, value), (shared, half) = torch.load(tmp_path / f"{number}.pt")
        assert whole["queue"].any()
        for key, expected in whole.items():
            torch.testing.assert_close(shared[key], expected)
        values.append(half)
    # each half is compared with the queue of all samples, so that the mean of both is the value of the whole
    torch.testing.assert_close(sum(values) / 2, value)


# Half of a batch in each of two processes, or the whole batch in one process; in the last step, process 1 has no rows.
INTERPOLATED = """
import sys

import torch
from torch import distributed

from kdkit.losses import TAID

number, folder = int(sys.argv[1]), sys.argv[2]
features = torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(0))


def learn(half):
    loss = TAID(rate=0.5, momentum=0.5)
    for step, (student, target) in enumerate(features):
        loss(student[half], target[half], progress=torch.tensor(step / 3))
    return {key: value.clone() for key, value in loss.state_dict().items()}, loss


whole, loss = learn(slice(None))
loss(*features[0, :, :2], progress=torch.tensor(1.0))
whole_last = loss.state_dict()
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
shared, loss = learn(slice(2 * number, 2 * number + 2))
rows = features[0, :, : 2 * (1 - number)].requires_grad_()
value = loss(*rows, progress=torch.tensor(1.0))
value.backward()
torch.save((whole, shared, whole_last, loss.state_dict(), value.detach()), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_the_share_of_an_interpolated_teacher_is_the_same_in_two_processes_as_in_one(tmp_path):
    in_two_processes(INTERPOLATED, tmp_path)
    for number in range(2):
        whole, shared, whole_last, last, value = torch.load(tmp_path / f"{number}.pt")
        assert whole["share"] > 0.7
        for key, expected in whole.items():
            torch.testing.assert_close(shared[key], expected)
            torch.testing.assert_close(last[key], whole_last[key])  # of the process that has rows
        assert whole_last["last_loss"] != whole["last_loss"]
        assert (value == 0) == (number == 1)


# A step of a student and of its projector, on half of a batch in each of two processes, or on the whole batch in one.
PROJECTED = """
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import kdkit
from kdkit import Batch, BuildContext, Match, Net, Stage, Tap, Training, Truth
from kdkit.losses import Hint
from tests.helpers.open_stages import open_and_build

number, folder = int(sys.argv[1]), sys.argv[2]
context = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
torch.manual_seed(0)
inputs, labels = torch.randn(8, 4), torch.arange(8) % 3


def gradients(rows, wrap):
    torch.manual_seed(1)
    teacher = Net("teacher", nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), trained=True)
    student = Net("student", nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)))
    taps = {"student": Tap(student.module[0]), "target": Tap(teacher.module[0])}
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, Hint(), **taps)
    batch = Batch(inputs[rows], labels[rows], rows)
    opened = open_and_build(Stage({student: objective}, Training(epochs=1)), context, batch)
    module = wrap(opened.module)  # a reference until after the backward pass, in which DDP averages the gradients
    sum(module(batch, opened.teacher_outputs(batch)).values()).backward()
    return {name: parameter.grad for name, parameter in opened.module.named_parameters()}


whole = gradients(torch.arange(8), lambda module: module)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
half = gradients(torch.arange(4) + 4 * number, DistributedDataParallel)
torch.save((whole, half), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("loss", ["Hint()", "Hint(kind='orthogonal', normalise='layer_norm', error='smooth_l1')"])
def test_the_gradient_of_a_projector_is_the_same_in_two_processes_as_in_one(loss, tmp_path):
    in_two_processes(PROJECTED.replace("Hint()", loss), tmp_path)
    for number in range(2):
        whole, half = torch.load(tmp_path / f"{number}.pt")
        assert any(name.startswith("losses") for name in whole)
        assert all(gradient.any() for gradient in whole.values())  # zeros would agree without a test
        for name, gradient in whole.items():
            torch.testing.assert_close(half[name], gradient)
