"""A plan with estimates: multiply-adds, the time of an epoch, and cached outputs, without a trace in the networks."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit import Ema, Match, Net, Parallel, Peer, Recipe, Stage, Tap, TorchData, Training, Truth, check
from kdkit.cli.plan import estimate_lines
from kdkit.cli.plan_svg import draw_plan
from kdkit.engine.options import RunOptions
from kdkit.losses import Hint, SoftTargets
from tests.helpers.tiny import Mlp, one_stage, plain_goal, same_state, samples, state_of, tiny_data, tiny_net

TRAINING = Training(epochs=2, batch_size=4)
TEACHER, STUDENT = 4 * 7 + 7 * 3, 4 * 5 + 5 * 3  # the multiply-adds of both linear layers


@pytest.fixture
def options(tmp_path):
    return RunOptions(device="cpu", out=tmp_path / "run")


class Noisy(Mlp):
    def forward(self, inputs):
        return super().forward(inputs) + torch.rand(3)


def distilled(**options):
    """Return the recipe of a student with a hint from a trained teacher, whose layer is wider."""
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student", seed=1)
    hint = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    training = {"epochs": 2, **options}
    return one_stage(student, plain_goal() + Match(teacher, SoftTargets()) + 0.1 * hint, **training)


def test_a_plan_has_no_estimates_unless_they_are_requested():
    assert check(distilled()).estimates == (None,)


def test_students_and_teachers_that_run_have_their_multiply_adds(options):
    (estimate,) = check(distilled(), estimate=options).estimates
    assert estimate.multiply_adds == {"student": STUDENT, "teacher": TEACHER}
    student = tiny_net("student")
    other = tiny_net("other", hidden=7)
    objectives = {
        student: plain_goal() + Match(Peer(other), SoftTargets()) + Match(Ema(student), SoftTargets()),
        other: plain_goal(),
    }
    recipe = Recipe(data=tiny_data(), schedule=[Stage(objectives, TRAINING)])
    (estimate,) = check(recipe, estimate=options).estimates
    # A peer does not run on its own, and an average is a copy of its network.
    assert estimate.multiply_adds == {"student": STUDENT, "other": TEACHER, Ema(student).name: STUDENT}


def test_a_student_with_an_output_in_training_only_has_its_multiply_adds(options):
    class Deep(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return (outputs, 2 * outputs) if self.training else outputs

    student = Net("student", Deep(4, 3), element=0)
    objective = plain_goal() + Truth(nn.CrossEntropyLoss(), label="deep", student=Tap(student.module, element=1))
    (estimate,) = check(one_stage(student, objective), estimate=options).estimates
    assert estimate.multiply_adds == {"student": 4 * 3}


def test_the_time_of_an_epoch_is_estimated_from_its_steps(options):
    (estimate,) = check(distilled(), estimate=options).estimates
    assert estimate.times.steps == 2  # 8 samples in batches of 4
    assert estimate.times.timed_samples == 4
    assert 0 < estimate.times.teachers["teacher"] < estimate.times.seconds
    assert estimate.times.peak_memory_bytes is None  # on a CPU
    assert estimate.cached_seconds == pytest.approx(estimate.times.seconds - estimate.times.teachers["teacher"])


def test_only_a_forward_pass_of_a_slow_network_is_timed(options):
    class Slow(Mlp):
        passes = 0

        def forward(self, inputs):
            Slow.passes += 1
            time.sleep(0.25)
            return super().forward(inputs)

    def slow():
        return one_stage(Net("student", Slow()), plain_goal())

    check(slow())
    passes, Slow.passes = Slow.passes, 0
    (estimate,) = check(slow(), estimate=options).estimates
    assert estimate.times.is_rough
    assert estimate.times.seconds >= 1.5  # two batches of 4 samples, each three times as long as a forward pass
    (line,) = [line for line in estimate_lines(estimate, torch.device("cpu")) if "per epoch" in line]
    assert line.startswith("roughly ")
    assert "of 2 steps on the CPU, from one forward pass of 4 samples; not counting data loading" in line
    assert estimate.multiply_adds == {"student": STUDENT}
    assert Slow.passes == passes + 2  # one that shows how slow it is, and one that is counted


def test_estimates_leave_networks_and_random_numbers_as_they_were(options):
    recipe = distilled()
    nets = check(recipe).nets
    before = [state_of(net.module) for net in nets]
    random = torch.get_rng_state()
    check(recipe, estimate=options).require()
    assert all(same_state(state_of(net.module), state) for net, state in zip(nets, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for net in nets for parameter in net.module.parameters())


def test_a_run_after_estimates_has_the_bits_of_one_without(options):
    def weights(*, estimated):
        torch.manual_seed(0)
        recipe = distilled()
        if estimated:
            check(recipe, estimate=options)
        else:
            check(recipe)  # which builds the losses once, too
        return kdkit.run(recipe, device="cpu").student.module.state_dict()

    plain, estimated = weights(estimated=False), weights(estimated=True)
    assert all(torch.equal(plain[name], estimated[name]) for name in plain)


def test_a_stage_with_problems_has_no_estimate(options):
    student = tiny_net("student", outputs=5)
    plan = check(one_stage(student, plain_goal()), estimate=options)
    assert plan.problems
    assert plan.estimates == (None,)


def test_projectors_are_named_with_their_shapes():
    terms = check(distilled()).terms[0]
    assert [term.projectors for term in terms[:2]] == [(), ()]
    (projector,) = terms[2].projectors
    assert (projector.module, projector.input, projector.output) == ("Projector", (4, 5), (4, 7))
    assert projector.parameters == 5 * 7 + 7


def test_the_projector_of_a_wrapped_loss_is_found():
    class Doubled(nn.Module):
        """A loss around another one."""

        def __init__(self):
            super().__init__()
            self.inner = Hint()

        def build(self, *args):
            self.inner.build(*args)

        def forward(self, student, target):
            return 2 * self.inner(student, target)

    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    sides = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    (term,) = check(one_stage(student, Match(teacher, Doubled(), **sides))).terms[0]
    assert [projector.module for projector in term.projectors] == ["Projector"]


def test_outputs_that_an_earlier_run_cached_will_be_reused(options):
    (before,) = check(distilled(), estimate=options).estimates
    forecast = before.caching["teacher"]
    assert forecast.is_cached
    assert forecast.folder == options.out.parent / "teacher_cache"
    assert forecast.entry is None
    assert not forecast.folder.exists()  # nothing is written
    kdkit.run(distilled(), device="cpu", teacher_cache=options.teacher_cache_folder())
    (after,) = check(distilled(), estimate=options).estimates
    entry = after.caching["teacher"].entry
    assert (entry.written, entry.rows) == (8, 8)
    (other,) = check(
        distilled(), "cpu", "bf16", estimate=RunOptions(device="cpu", precision="bf16", out=options.out)
    ).estimates
    assert other.caching["teacher"].entry is None  # outputs of another precision


def test_outputs_of_a_teacher_that_the_recipe_trains_have_no_entry_yet(options):
    options.teacher_cache_folder().mkdir()
    (options.teacher_cache_folder() / "entry").mkdir()
    nets = tiny_net("teacher", hidden=7), tiny_net("student")
    recipe = Recipe(
        data=tiny_data(),
        schedule=Parallel(*nets, truth=plain_goal(), kd_loss=SoftTargets(), training=TRAINING),
    )
    first, second = check(recipe, estimate=options).estimates
    assert first.caching == {}
    assert second.caching["teacher"].is_cached
    assert second.caching["teacher"].entry is None


def test_a_forecast_gives_the_reason_for_which_nothing_is_cached(options):
    off = RunOptions(device="cpu", out=options.out, teacher_cache="off")
    (estimate,) = check(distilled(), estimate=off).estimates
    assert estimate.caching["teacher"].reason == "the cache is off"
    loaders = [DataLoader(samples(rows=8, seed=seed), batch_size=4) for seed in range(2)]
    data = TorchData(*loaders, classes=["a", "b", "c"])
    (estimate,) = check(distilled(data=data), estimate=options).estimates
    assert "comes from a loader" in estimate.caching["teacher"].reason
    noisy = Net("teacher", Noisy(), trained=True)
    recipe = one_stage(tiny_net("student", seed=1), plain_goal() + Match(noisy, SoftTargets()), epochs=2)
    (estimate,) = check(recipe, estimate=options).estimates
    assert "draws random numbers" in estimate.caching["teacher"].reason
    assert estimate.times.steps == 2


def test_a_recipe_without_stages_has_a_plan(options):
    plan = check(Recipe(data=tiny_data(), schedule=[]), estimate=options)
    assert plan.problems
    assert plan.estimates == ()
    assert draw_plan(plan, "empty").startswith("<svg")


def test_a_network_that_fails_for_larger_batches_is_not_timed(options):
    class Small(Mlp):
        def forward(self, inputs):
            if len(inputs) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(inputs)

    student = Net("student", Small())
    before = state_of(student.module)
    plan = check(one_stage(student, plain_goal(), batch_size=8), estimate=options)
    assert plan.problems == ()
    assert plan.estimates[0].times is None
    assert same_state(state_of(student.module), before)
