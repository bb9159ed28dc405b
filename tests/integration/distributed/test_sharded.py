"""Networks whose weights `fully_shard` divides among processes, of a run and of a Distiller, and a Distiller in DDP."""

import pytest
import torch

from tests.helpers.ranks import in_two_processes

# 33 samples of the validation and the test: one process has a batch more of them than the other.
RANK = """
import sys
import warnings

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Distiller, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import Hint, SoftTargets

warnings.filterwarnings("error", message="FSDP2-wrapped module .* returned a view")
number, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
mesh = init_device_mesh("cpu", (2,))


def network(width, sharded):
    torch.manual_seed(width)
    module = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 3))
    if sharded:
        fully_shard(module[0], mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def samples(count):
    labels = torch.arange(count) % 3
    return torch.eye(3, 6)[labels] + torch.randn(count, 6, generator=torch.Generator().manual_seed(count)), labels


def objective(teacher, student):
    hint = Match(teacher, Hint(), student=Tap(student.module[0]), target=Tap(teacher.module[0]))
    return Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets()) + hint


def run(sharded):
    teacher, student = Net("teacher", network(16, sharded), trained=True), Net("student", network(4, False))
    data = TorchData(*(TensorDataset(*samples(count)) for count in (70, 33, 33)))
    training = Training(epochs=3, batch_size=16)
    recipe = Recipe(data=data, schedule=[Stage({student: objective(teacher, student)}, training)])
    result = kdkit.run(recipe, device="cpu")
    return [metrics["accuracy"].value for metrics in result.metrics.values()], student.module.state_dict()


def loop_on_features(sharded):
    "Train on features alone, of a student that is sharded as a whole, and return its weights."
    student, teacher = network(4, False), network(4, False)
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    if sharded:
        fully_shard(student, mesh=mesh)
    match = Match(Net("teacher", teacher, trained=True), Hint(), student=Tap(student[1]), target=Tap(teacher[1]))
    with Distiller(Net("student", student), match, samples(16)) as distiller:
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        for _ in range(3):
            distiller(*samples(16)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))


def loop(sharded):
    "Train with half of a batch in each process, and return the weights of the student. sharded: before the rest."
    is_whole = sharded in ("", "ddp")
    student, teacher = network(4, sharded == "networks"), Net("teacher", network(16, not is_whole), trained=True)
    inputs, labels = (values[number::2] for values in samples(16))
    torch.manual_seed(0)
    with Distiller(Net("student", student), objective(teacher, Net("student", student)), (inputs, labels)) as distiller:
        if sharded == "distiller":
            for layer in (student[0], student[2], distiller):
                fully_shard(layer, mesh=mesh)
        call = DistributedDataParallel(distiller) if sharded == "ddp" else distiller
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        for _ in range(5):
            call(inputs, labels).loss.backward()
            for parameter in distiller.parameters():
                if parameter.grad is not None and not type(parameter).__name__ == "DTensor":
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= 2
            optimizer.step()
            optimizer.zero_grad()
    return get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))


loops = {f"loop {sharded}": loop(sharded) for sharded in ("", "ddp", "networks", "distiller")}
loops |= {f"features {sharded}": loop_on_features(sharded) for sharded in (False, True)}
torch.save({"whole": run(False), "sharded": run(True), **loops}, f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the first process."""
    folder = tmp_path_factory.mktemp("sharded")
    in_two_processes(RANK, folder)
    return torch.load(folder / "0.pt")


def test_a_sharded_teacher_of_a_run_teaches_and_is_evaluated_as_a_whole_one(results):
    metrics, weights = results["whole"]
    sharded_metrics, sharded_weights = results["sharded"]
    assert sharded_metrics == metrics
    torch.testing.assert_close(sharded_weights, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sharded", ["networks", "distiller"])
def test_a_sharded_student_learns_from_a_sharded_teacher_in_a_distiller_as_whole_ones_do(results, sharded):
    torch.testing.assert_close(results[f"loop {sharded}"], results["loop "], rtol=0, atol=1e-6)


def test_a_distiller_in_distributed_data_parallel_trains_as_with_averaged_gradients(results):
    torch.testing.assert_close(results["loop ddp"], results["loop "], rtol=0, atol=1e-6)


def test_a_student_that_is_sharded_as_a_whole_learns_from_features_alone(results):
    torch.testing.assert_close(results["features True"], results["features False"], rtol=0, atol=1e-6)
