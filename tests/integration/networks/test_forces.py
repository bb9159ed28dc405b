"""Networks that compute forces, the negative gradient of their energy with respect to the positions of atoms."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError


class Potential(nn.Module):
    """The energy (batch, 1) and forces (batch, atoms, 3) of positions (batch, atoms, 3)."""

    def __init__(self, width, **options):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
        self.options = options or {"create_graph": True}

    def forward(self, positions):
        with torch.enable_grad():
            return self.compute(positions.detach().requires_grad_())

    def compute(self, positions):
        energy = self.layers(positions).sum(1)
        forces = -torch.autograd.grad(energy.sum(), positions, **self.options)[0]
        return {"energy": energy, "forces": forces}


class WithoutModes(Potential):
    """Calls torch.autograd.grad even if gradients are off."""

    def forward(self, positions):
        return self.compute(positions.requires_grad_())


def net(name, width, kind=Potential, **options):
    return Net(name, kind(width, **options), element="energy", trained=name == "teacher")


def recipe(student, objective):
    positions = torch.randn(24, 4, 3, generator=torch.Generator().manual_seed(0))
    structures = TensorDataset(positions, positions.square().sum((1, 2))[:, None])
    return Recipe(data=TorchData(structures, structures), schedule=[Stage({student: objective}, Training(epochs=1))])


def of_forces(side):
    return Tap(side.module, element="forces", channels_last=False)


def test_energies_and_forces_are_learned_and_a_teacher_has_no_gradient():
    teacher, student = net("teacher", 8), net("student", 4)
    before = [parameter.detach().clone() for parameter in student.module.parameters()]
    graphs = []

    def error(outputs, targets):
        graphs.append(targets.requires_grad)
        return (outputs - targets).square().mean()

    forces = Match(teacher, error, student=of_forces(student), target=of_forces(teacher))
    objective = Truth(nn.MSELoss()) + 10 * forces + Match(teacher, error)
    kdkit.run(recipe(student, objective), teacher_cache="off", device="cpu", measure=False)
    assert graphs
    assert not any(graphs)
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert not any(map(torch.equal, before[:-1], student.module.parameters()))  # no force depends on the last bias


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_gradients_of_a_network_that_runs_without_them_are_explained(name):
    kinds = {name: WithoutModes}
    teacher, student = (net(part, 4, kinds.get(part, Potential)) for part in ("teacher", "student"))
    problem = r"net '{}' fails for its inputs .*: put @torch.enable_grad\(\) above a forward that calls"
    with pytest.raises(CheckError, match=problem.format(name)):
        kdkit.check(recipe(student, Truth(nn.MSELoss()) + Match(teacher, nn.MSELoss()))).require()


def test_positions_that_are_differentiated_must_require_gradients():
    class Constant(Potential):
        def forward(self, positions):
            return self.compute(positions.detach())

    problem = r"differentiated Tensors does not require grad .*; call requires_grad_\(\) on an input before the output"
    with pytest.raises(CheckError, match=problem):
        kdkit.check(recipe(net("student", 4, Constant), Truth(nn.MSELoss()))).require()


def test_an_energy_whose_graph_was_freed_has_the_advice_to_create_one():
    student = net("student", 4, retain_graph=False)
    with pytest.raises(CheckError, match=r"through the graph a second time.* pass create_graph=True in training"):
        kdkit.check(recipe(student, Truth(nn.MSELoss()))).require()


def test_forces_without_a_graph_cannot_be_learned():
    student = net("student", 4, retain_graph=True)
    objective = Truth(lambda forces, labels: forces.square().mean(), student=of_forces(student))
    with pytest.raises(CheckError, match=r"have no gradient; .* by torch.autograd.grad without create_graph=True"):
        kdkit.check(recipe(student, objective)).require()
