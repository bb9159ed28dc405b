"""The advice which layers to pair: similar ones, in order, with a tap to copy."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Match, Net, Recipe, Stage, Tap, Teachers, TorchData, Training
from kdkit.cli.pairs_table import tap_expression
from kdkit.engine.measurement.layer_pairs import pair_advice
from kdkit.losses import CKA, PerTeacher, SoftTargets
from tests.helpers.tiny import hooks_of, plain_goal, same_state, state_of

CPU = torch.device("cpu")


class Deep(nn.Module):
    """Convolutions over positions, with norms, then a classifier."""

    def __init__(self, width=8, blocks=4, stride=1):
        super().__init__()
        self.stem = nn.Conv1d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, 3, padding=1, stride=stride), nn.BatchNorm1d(width), nn.ReLU())
            for _ in range(blocks)
        )
        self.hidden = nn.Linear(width, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, inputs):
        features = self.stem(inputs)
        for block in self.blocks:
            features = block(features)
        return self.head(self.hidden(features.mean(-1)).relu())


class Tokens(nn.Module):
    """Blocks on tokens, whose channels are last, one of which returns more than a tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layers = nn.ModuleDict({"first one": nn.Linear(8, 8), "second": nn.TransformerEncoderLayer(8, 2, 16)})
        self.head = nn.Linear(8, 2)

    def forward(self, inputs):
        tokens = self.embed(inputs.movedim(1, -1))
        tokens, _ = self.attention(tokens, tokens, tokens)
        for layer in self.layers.values():
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def samples(count=96):
    """Samples that are sorted by class."""
    random = torch.Generator().manual_seed(0)
    labels = (torch.arange(count) >= count // 2).long()
    return TensorDataset(torch.randn(count, 3, 12, generator=random) + labels[:, None, None], labels)


def recipe_of(student, *teachers, data=None):
    match = Match(teachers[0], SoftTargets())
    if len(teachers) > 1:
        match = Match(Teachers(*teachers), PerTeacher(SoftTargets()))
    data = data or TorchData(samples(), samples(12), classes=["a", "b"])
    stage = Stage({student: plain_goal() + match}, Training(epochs=1, batch_size=4))
    return Recipe(data=data, schedule=[stage])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_layers_of_a_copy_are_paired_with_themselves():
    module = Deep()
    student, teacher = Net("student", module), Net("teacher", copy.deepcopy(module), trained=True)
    (advice,) = pair_advice(recipe_of(student, teacher), CPU, count=9)
    assert (advice.student, advice.teacher) == (student, teacher)
    paths = [pair.student.path for pair in advice.pairs]
    assert paths == ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "hidden"]  # neither norms nor outputs
    for pair in advice.pairs:
        assert (pair.student.path, pair.student.shape) == (pair.teacher.path, pair.teacher.shape)
        assert pair.similarity == pytest.approx(1, abs=1e-5)


def test_pairs_are_in_order_and_have_each_layer_once():
    student, teacher = Net("student", Deep(4, blocks=3)), Net("teacher", Deep(16, blocks=9))
    (advice,) = pair_advice(recipe_of(student, teacher), CPU, count=4)
    assert len(advice.pairs) == 4
    for side in ("student", "teacher"):
        depths = [getattr(pair, side).depth for pair in advice.pairs]
        assert depths == sorted(set(depths))
    assert advice.pairs[0].student.shape == (4, 12)
    assert advice.pairs[0].teacher.shape == (16, 12)


def test_the_similarity_is_the_unbiased_cka_of_all_batches():
    student, teacher = Net("student", Deep(4)), Net("teacher", Deep(8))
    data = TorchData(samples(16), samples(12), classes=["a", "b"])  # one batch
    (advice,) = pair_advice(recipe_of(student, teacher, data=data), CPU)
    pair = advice.pairs[0]
    features = []
    for owner, layer in ((student, pair.student), (teacher, pair.teacher)):
        captured = []
        module = owner.module.get_submodule(layer.path)
        handle = module.register_forward_hook(lambda *args, to=captured: to.append(args[2]))
        with torch.no_grad():
            owner.module.eval()(samples(16).tensors[0])
        handle.remove()
        features.append(captured[0])
    assert pair.similarity == pytest.approx(1 - float(CKA(unbiased=True)(*features)), abs=1e-4)


def test_tokens_have_channels_first_and_layers_with_several_outputs_or_uncertain_channels_are_left_out():
    student, teacher = Net("student", Deep(4)), Net("teacher", Tokens())
    (advice,) = pair_advice(recipe_of(student, teacher), CPU, count=9)
    shapes = {pair.teacher.path: pair.teacher.shape for pair in advice.pairs}
    assert shapes
    assert {positions for _, positions in shapes.values()} == {12}
    assert "embed" in shapes
    assert not {"attention", "layers.second"} & {*shapes}  # two tensors; the batch may be second


def test_every_matched_teacher_has_advice():
    teachers = [Net(f"teacher{index}", Deep(4 + index)) for index in range(2)]
    advice = pair_advice(recipe_of(Net("student", Deep(4)), *teachers), CPU)
    assert [pairs.teacher for pairs in advice] == teachers


def test_a_recipe_without_a_teacher_has_no_advice():
    data = TorchData(samples(), samples(12), classes=["a", "b"])
    stage = Stage({Net("student", Deep()): plain_goal()}, Training(epochs=1, batch_size=4))
    assert pair_advice(Recipe(data=data, schedule=[stage]), CPU) == ()


def test_layers_are_compared_on_the_batches_of_a_loader():
    loaders = [DataLoader(samples(), batch_size=48, shuffle=True) for _ in range(2)]
    data = TorchData(*loaders, classes=["a", "b"])
    (advice,) = pair_advice(recipe_of(Net("student", Deep(4)), Net("teacher", Deep(8)), data=data), CPU)
    assert advice.pairs


def test_networks_and_random_numbers_stay_as_they_were():
    nets = Net("student", Deep(4)), Net("teacher", Deep(8))
    before = [state_of(net.module) for net in nets]
    recipe, random = recipe_of(*nets), torch.get_rng_state()
    pair_advice(recipe, CPU)
    for net, state in zip(nets, before, strict=True):
        assert same_state(state_of(net.module), state)
        assert not hooks_of(net.module)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_tokens_of_a_timm_model_are_tapped_as_a_map():
    teacher = Net("teacher", timm.create_model("test_vit", img_size=32))
    assert tap_expression(teacher, "blocks.2") == "timm_tap(teacher.module, 2)"
    assert tap_expression(teacher, "blocks.2.mlp") == "Tap(teacher.module.blocks[2].mlp)"
    assert tap_expression(Net("student", timm.create_model("test_resnet")), "layer1").startswith("Tap(student.")


def test_the_expression_of_a_tap_gives_its_layer():
    for name, module in (("student", Deep()), ("my net", Tokens())):
        owner = Net(name, module)
        for path, layer in module.named_modules():
            if path:
                tap = eval(tap_expression(owner, path), {"Tap": Tap, "student": owner, "net": owner})
                assert tap.module is layer
