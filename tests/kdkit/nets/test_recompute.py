"""Activations that are recomputed in the backward pass: less is kept, and all values stay the same."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from transformers import LlamaConfig, LlamaForCausalLM

from kdkit import Ema, Match, Net, Stage, Tap, Training
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.check.step_problems import update_problems
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.open_stage import OpenStage, build_context
from kdkit.engine.stage.train_state import TrainState
from kdkit.losses import Hint, SoftTargets
from kdkit.nets.recompute import Recomputation
from kdkit.recipe.balancing import GradNorm, PCGrad, WeightedSum
from kdkit.utils.devices import autocast
from tests.helpers.tiny import hooks_of, plain_goal, state_of, tiny_data

CPU = torch.device("cpu")
WIDTH = 6


class Block(nn.Module):
    """A layer with batch norm, an in-place ReLU, dropout and a spectral norm: with buffers and random numbers."""

    def __init__(self):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(WIDTH, WIDTH))  # a buffer that changes the output
        self.norm, self.act, self.drop = nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Dropout(0.4)

    def forward(self, inputs, *, scale=None):
        outputs = self.drop(self.act(self.norm(self.linear(inputs))))
        return outputs if scale is None else outputs * scale


class Blocks(nn.Module):
    """Some blocks, of which one has a keyword argument, and one runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.twice, self.head = nn.Linear(4, WIDTH), Block(), Block(), nn.Linear(WIDTH, 3)
        self.rest = nn.Sequential(Block(), Block())

    def forward(self, inputs):
        features = self.stem(inputs)
        features = self.first(features, scale=features.sigmoid())
        return self.head(self.rest(self.twice(self.twice(features))))


def steps(recompute, tap="first", *, balancing=None, precision="fp32", compiled=None):
    """Return the losses, gradients, state and random state of three steps; fail if a tap keeps a tensor."""
    torch.manual_seed(0)
    data, teacher, student = tiny_data(), Net("t", Blocks(), trained=True), Net("s", Blocks(), recompute=recompute)
    taps = {"student": Tap(student.module.get_submodule(tap)), "target": Tap(teacher.module.get_submodule(tap))}
    objective = plain_goal() + Match(teacher, SoftTargets()) + Match(teacher, Hint(), **taps)
    training = Training(epochs=1, balancing=balancing or WeightedSum())
    results = []
    with OpenStage(Stage({student: objective}, training), build_context(data), CPU) as stage:
        assert dry_run(stage, data.train.batch(torch.arange(4), 0)).problems == []
        state = TrainState(stage, RunOptions(), {}, batches=3, higher_is_better=True)
        module = stage.module if compiled is None else compiled(stage.module)
        stage.module.train()
        torch.manual_seed(1)
        for step in range(3):
            batch = data.train.batch((torch.arange(8) + step) % 8, 0)
            with autocast(precision, CPU):
                losses = module(batch, stage.teacher_outputs(batch))
            state.backward(losses, 1)
            assert len(stage.module.open_taps.unfired()) == 1  # the pass that recomputes left nothing in the tap
            results += [loss.detach() for loss in losses.values()]
            results += [parameter.grad.clone() for parameter in state.parameters]
            state.optimizer_step()
        results += [value.clone() for value in stage.module.state_dict().values()]
    return [*results, torch.get_rng_state()]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


# A module with or around the tapped one, without it, all of them, modules inside each other, and one without buffers.
RECOMPUTED = [["first"], ["rest"], ["first", "twice", "rest.0", "rest.1"], ["rest", "rest.0", "rest.0.drop"], ["stem"]]


@pytest.mark.parametrize("recompute", RECOMPUTED, ids="+".join)
@pytest.mark.parametrize("tap", ["stem", "first", "first.norm", "twice.drop", "rest.0.linear"])
def test_losses_gradients_buffers_and_random_numbers_are_the_same_bits(recompute, tap):
    assert same(steps(recompute, tap), steps([], tap))


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16"}, {"balancing": PCGrad()}, {"balancing": GradNorm()}],
    ids=["autocast", "several backward passes", "a balancer that learns"],
)
def test_the_bits_are_the_same_with_autocast_and_several_backward_passes(options):
    assert same(steps(["first", "rest"], "first.norm", **options), steps([], "first.norm", **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # a warning of the compiler
def test_a_compiled_step_has_the_same_bits_also_if_a_tap_breaks_its_graph():
    torch.compiler.reset()
    # A plain torch.compile breaks the graph at a tap inside of a recomputed module; the module of a run does not.
    results = steps(["first", "rest"], "first.norm", compiled=functools.partial(torch.compile, backend="aot_eager"))
    assert same(results, steps([], "first.norm"))
    torch.compiler.reset()


def test_layers_of_a_model_of_transformers_are_recomputed_without_its_cache():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, use_cache=True
    )
    model, tokens = LlamaForCausalLM(config), torch.randint(0, 9, (2, 6))
    model(tokens, labels=tokens).loss.backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    recomputation = Recomputation(model.model.layers)
    model(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)
    recomputation.close()
    assert model.config.use_cache


def test_the_inner_activations_are_not_kept():
    kept = {}
    for names in ((), ("twice", "rest")):
        net, tensors = Net("student", Blocks(), recompute=names), []
        recomputation = Recomputation(net.recomputed)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=tensors: kept.append(tensor), lambda _: None):
            net.module(torch.randn(5, 4))
        recomputation.close()
        kept[names] = len(tensors)
    assert kept["twice", "rest"] < kept[()] / 2


def test_nothing_is_recomputed_without_gradients():
    net = Net("student", Blocks(), recompute=["rest"])
    recomputation = Recomputation(net.recomputed)
    with torch.no_grad():
        net.module(torch.randn(5, 4))
    assert recomputation.unused() == [net.module.rest]
    recomputation.close()


def test_a_closed_stage_leaves_the_network_as_it_was():
    student = Net("student", Blocks(), recompute=["first", "rest"])
    data, before, keys = tiny_data(), state_of(student.module), [*student.module.state_dict()]
    with OpenStage(Stage({student: plain_goal()}, Training(epochs=1)), build_context(data), CPU):
        assert [*student.module.state_dict()] == keys
        assert "forward" in vars(student.module.first)
    assert hooks_of(student.module) == before["hooks"]
    assert not any("forward" in vars(module) for module in student.module.modules())
    copy.deepcopy(student.module)(torch.randn(5, 4))


def test_a_forward_that_user_code_has_set_is_recomputed_and_restored():
    module, calls = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), []

    def forward(inputs):
        calls.append(inputs)
        return nn.Sequential.forward(module, inputs)

    module.forward = forward
    recomputation = Recomputation([module])
    module(torch.randn(2, 4)).sum().backward()
    recomputation.close()
    assert len(calls) == 2
    assert vars(module)["forward"] is forward


def test_a_module_with_two_names_is_restored():
    module = nn.Linear(2, 2)
    net = Net("student", nn.ModuleDict({"first": module, "second": module}), recompute=["first", "second"])
    Recomputation(net.recomputed).close()
    assert "forward" not in vars(module)


def test_the_average_of_a_network_is_a_copy_that_does_not_run_the_network():
    data, student = tiny_data(), Net("student", Blocks(), recompute=["first"])
    stage = Stage({student: plain_goal() + Match(Ema(student), SoftTargets())}, Training(epochs=1))
    with OpenStage(stage, build_context(data), CPU) as open_stage:
        batch, calls = data.train.batch(torch.arange(4), 0), []
        student.module.first.linear.register_forward_hook(lambda *_: calls.append(0))
        open_stage.teacher_outputs(batch)
        assert calls == []


def problems_of(module, recompute):
    data, student = tiny_data(), Net("student", module, recompute=recompute)
    with OpenStage(Stage({student: plain_goal()}, Training(epochs=1)), build_context(data), CPU) as stage:
        batch = data.train.batch(torch.arange(4), 0)
        facts = dry_run(stage, batch)
        return facts.problems or [*update_problems(facts)]


def test_a_module_that_is_never_called_cannot_be_recomputed():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 3)])

        def forward(self, inputs):
            return self.layers[0](inputs)

    assert problems_of(Listed(), ["layers.0"]) == []
    (problem,) = problems_of(Listed(), ["layers"])
    assert problem.startswith("net 'student' cannot recompute 'layers': this ModuleList is not called")


def test_a_module_that_modifies_its_input_is_found_before_the_first_step():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    assert problems_of(module, ["1"]) == []
    (problem,) = problems_of(module, ["2"])
    assert "modules that net 'student' recomputes must not change their inputs in place" in problem
