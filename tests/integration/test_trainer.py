"""Whole runs of tiny nets: what is trained, what is left alone, and that the same seed gives the same bits."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kdkit
from kdkit import (
    AverageWeights,
    DataError,
    KdkitError,
    Level,
    LinearRamp,
    LRSchedule,
    Match,
    MetricResult,
    MultiLevel,
    Net,
    Optimizer,
    Parallel,
    Recipe,
    RecipeError,
    Sequential,
    Stage,
    Tap,
    TorchData,
    Truth,
    hookimpl,
)
from kdkit.losses import Hint, SoftTargets
from kdkit.plugins.manager import installed
from tests.helpers.stages import Small, copied, data, same, samples, three, told, training, truth


class Listener:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.epochs: list[Any] = []
        self.steps: list[Any] = []
        self.ended: list[Any] = []

    @hookimpl
    def run_started(self, event: Any) -> None:
        self.runs.append(event)

    @hookimpl
    def step_ended(self, event: Any) -> None:
        self.steps.append({**event.terms})

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        self.epochs.append(event)

    @hookimpl
    def run_ended(self, event: Any) -> None:
        self.ended.append(event)


class Listed:
    """A score that says what it was given to say, call by call."""

    def __init__(self, *values: float) -> None:
        self.values: Iterator[float] = iter(values)

    name = "listed"

    def fit(self, validation: Any) -> "Listed":
        return self

    def compute(self, test: Any) -> MetricResult:
        return MetricResult(value=next(self.values, 0.0))


@pytest.fixture(autouse=True)
def _fresh_plugins() -> Iterator[None]:
    installed.cache_clear()
    yield
    installed.cache_clear()


def alone(
    net: Net[Any] | None = None, *, given: TorchData | None = None, objective: Any = None, **changes: Any
) -> Recipe:
    """A recipe of one net that learns from labels."""
    net = net or Net("student", Small(4))
    metrics = changes.pop("metrics", ())
    return Recipe(
        data=given or data(), schedule=[Stage({net: objective or truth()}, training(**changes))], metrics=metrics
    )


def weights(recipe: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    return {name: copied(net.module) for name, net in kdkit.run(recipe, device="cpu", **options).nets.items()}


# One seed, one run


@pytest.mark.parametrize("schedule", [MultiLevel, Parallel, Sequential])
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(schedule):
    first, again, other = (kdkit.run(lambda: three(schedule), device="cpu", seed=seed) for seed in (3, 3, 4))
    assert told(first.history) == told(again.history)
    assert first.metrics == again.metrics
    for name in ("teacher", "assistant", "student"):
        assert same(first.nets[name].module.state_dict(), again.nets[name].module.state_dict())
        assert not same(first.nets[name].module.state_dict(), other.nets[name].module.state_dict())
    assert told(first.history) != told(other.history)


def test_an_epoch_does_not_depend_on_what_a_watcher_is_shown():
    class Meddler:
        @hookimpl
        def epoch_ended(self, event: Any) -> None:
            for mapping in (event.terms, event.weights):
                for key in list(mapping):
                    try:
                        mapping[key] = 0.0
                    except TypeError:
                        return

        @hookimpl
        def run_ended(self, event: Any) -> None:
            if isinstance(event.metrics, dict):
                event.metrics.clear()

    plain = kdkit.run(three, device="cpu")
    watched = kdkit.run(three, device="cpu", callbacks=[Meddler()])
    assert told(plain.history) == told(watched.history)
    assert plain.metrics == watched.metrics
    assert same(plain.student.module.state_dict(), watched.student.module.state_dict())


def test_a_misspelt_hook_of_a_watcher_is_refused_by_name():
    class Wrong:
        @hookimpl
        def epoch_end(self, event: Any) -> None: ...

    with pytest.raises(kdkit.errors.PluginError, match=r"'epoch_end'.*did you mean 'epoch_ended'"):
        kdkit.run(three, device="cpu", callbacks=[Wrong()])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_workers_change_no_number(dropout):
    def recipe(workers: int) -> Recipe:
        return alone(Net("student", Small(4, dropout=dropout)), epochs=2, workers=workers)

    inside, outside = (kdkit.run(lambda count=count: recipe(count), device="cpu") for count in (0, 2))
    assert told(inside.history) == told(outside.history)
    assert same(inside.student.module.state_dict(), outside.student.module.state_dict())


# Who teaches, and what is left alone


def test_the_net_trained_in_one_stage_is_the_object_that_teaches_in_the_next():
    teacher, student = Net("teacher", Small(8)), Net("student", Small(4))
    heard = []

    def watching(student_out: Tensor, target: Tensor) -> Tensor:
        heard.append((target.detach().clone(), copied(teacher.module), teacher.module.training, target.requires_grad))
        return nn.functional.mse_loss(student_out, target)

    recipe = Recipe(
        data=data(), schedule=Sequential(teacher, student, truth=truth(), kd_loss=watching, training=training())
    )
    before = copied(teacher.module)
    result = kdkit.run(recipe, device="cpu")
    assert result.nets["teacher"] is teacher
    assert not same(before, teacher.module.state_dict())
    learned = [entry for entry in heard if not same(entry[1], before)]  # the others are from the check
    assert len(learned) >= 8
    assert all(same(entry[1], teacher.module.state_dict()) for entry in learned)
    assert not any(entry[2] or entry[3] for entry in heard)


def test_a_teachers_buffers_and_modes_are_left_alone_while_it_teaches():
    teacher = Net("teacher", Small(8), trained=True)
    teacher.module.train()
    teacher.module.norm.eval()
    before = copied(teacher.module)
    recipe = Recipe(
        data=data(),
        schedule=Parallel(teacher, Net("student", Small(4)), truth=truth(), kd_loss=SoftTargets(), training=training()),
    )
    kdkit.run(recipe, device="cpu")
    assert same(before, teacher.module.state_dict())
    assert teacher.module.training
    assert not teacher.module.norm.training
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


def test_hooks_are_gone_after_a_run_and_after_an_error():
    def hooks(module: nn.Module) -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())

    def broken(student: Tensor, target: Tensor, progress: Tensor) -> Tensor:
        if progress > 0.5:
            raise RuntimeError("broken on purpose")
        return nn.functional.mse_loss(student.mean(1), target.mean(1))

    for loss in (Hint(), broken):
        teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
        match = Match(teacher, loss, student=Tap(student.module.body), target=Tap(teacher.module.body))
        recipe = Recipe(data=data(), schedule=[Stage({student: truth() + match}, training())])
        if loss is broken:
            with pytest.raises(RuntimeError, match="broken on purpose"):
                kdkit.run(recipe, device="cpu")
        else:
            kdkit.run(recipe, device="cpu")
        assert hooks(teacher.module) == hooks(student.module) == 0


def test_a_level_has_its_own_training_shares_and_balance():
    def recipe() -> Recipe:
        nets = Net("teacher", Small(8)), Net("assistant", Small(6)), Net("student", Small(4))
        level = Level(nets[2], training=training(epochs=1), teacher_weights=(0.75, 0.25), label_weight=0.2)
        how = {"truth": truth(), "kd_loss": SoftTargets(), "training": training(epochs=2)}
        return Recipe(data=data(), schedule=MultiLevel(nets[0], nets[1], level, **how))

    listener = Listener()
    result = kdkit.run(recipe, device="cpu", callbacks=[listener])
    assert [len(result.history[name]) for name in ("teacher", "assistant", "student")] == [2, 2, 1]
    expected = {"truth": 0.2, "teacher/soft_targets": 0.6, "assistant/soft_targets": 0.2}
    assert listener.epochs[-1].weights == pytest.approx(expected)


def test_a_net_trained_twice_is_the_student_and_its_predictions_lie_in_its_last_stage(tmp_path):
    student, other = Net("student", Small(4)), Net("other", Small(4))
    stages = [
        Stage({student: truth()}, training(epochs=1), name="first"),
        Stage({other: truth()}, training(epochs=1)),
        Stage({student: truth()}, training(epochs=1), name="second"),
    ]
    result = kdkit.run(Recipe(data=data(), schedule=stages), device="cpu", out=tmp_path / "run")
    assert result.student is student
    assert (tmp_path / "run" / "3-second" / "predictions-student-test.safetensors").exists()
    assert not (tmp_path / "run" / "1-first" / "predictions-student-test.safetensors").exists()


def test_two_nets_can_be_trained_in_one_stage():
    one, two = Net("one", Small(4)), Net("two", Small(6))
    recipe = Recipe(data=data(), schedule=[Stage({one: truth(), two: truth()}, training())])
    before = copied(one.module), copied(two.module)
    result = kdkit.run(recipe, device="cpu")
    assert set(result.history["one+two"][0]["terms"]) == {"one: truth", "two: truth"}
    assert not same(before[0], one.module.state_dict())
    assert not same(before[1], two.module.state_dict())


@pytest.mark.parametrize("name", ["half", "train", "keys", "forward", "a b+c"])
def test_a_net_and_a_term_may_have_the_name_of_a_method(name):
    teacher = Net("teacher", Small(8), trained=True)
    student = Net(name, Small(4))
    objective = truth() + Match(teacher, nn.MSELoss(), label=name)
    result = kdkit.run(Recipe(data=data(), schedule=[Stage({student: objective}, training(epochs=1))]), device="cpu")
    assert set(result.history[name][0]["terms"]) == {"truth", name}


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".."])
def test_a_stages_name_names_a_folder_and_no_other_place(name):
    if not name:
        assert Stage({Net("student", Small(4)): truth()}, training(), name=name).name == "student"
        return
    with pytest.raises(RecipeError, match="letters, digits"):
        Stage({Net("student", Small(4)): truth()}, training(), name=name)


# Which epoch is kept

CHECK = 0.0  # what the check gets, which asks a score once before anything is trained


class Snapshots:
    """Remembers the weights that a net had after each epoch."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen: list[dict[str, Tensor]] = []

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        self.seen.append(copied(self.module))


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_the_best_or_the_last_epoch_is_kept(keep, kept):
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = alone(net, epochs=4, keep=keep, metrics=(Listed(CHECK, 0.1, 0.9, 0.2, 0.9),))
    result = kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[kept])
    assert sum(same(net.module.state_dict(), each) for each in snapshots.seen) == 1
    marks = [epoch["kept"] for epoch in result.history["student"]]
    assert marks == ([True, True, False, False] if keep == "best" else [True] * 4)


def test_the_score_named_by_decides():
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = alone(net, epochs=3, monitor="listed", metrics=(kdkit.metrics.Accuracy(), Listed(CHECK, 0.1, 0.2, 0.0)))
    kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[1])


def test_an_epoch_without_a_score_gives_way_to_one_that_has_one():
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = alone(net, epochs=3, metrics=(Listed(CHECK, math.nan, 0.5, math.nan),))
    kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[1])


# How a step is made


def test_two_micro_batches_of_eight_are_one_batch_of_sixteen():
    start = Small(4, dropout=0.0)
    start.norm = nn.Identity()  # batch norm sees the micro-batch

    def recipe(size: int, accumulate: int) -> Recipe:
        net = Net("student", copy.deepcopy(start))
        return alone(net, epochs=3, batch_size=size, accumulate_steps=accumulate, optimizer=Optimizer(SGD, lr=0.1))

    whole, parts = weights(recipe(16, 1))["student"], weights(recipe(8, 2))["student"]
    assert not same(whole, start.state_dict())
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)


def test_the_last_group_of_micro_batches_may_be_short():
    start = Small(4, dropout=0.0)
    start.norm = nn.Identity()
    given = TorchData(samples(24), samples(24, 1), classes=("a", "b", "c"))

    def recipe(size: int, accumulate: int) -> Recipe:
        net = Net("student", copy.deepcopy(start))
        how = {"batch_size": size, "accumulate_steps": accumulate, "optimizer": Optimizer(SGD, lr=0.1)}
        return alone(net, given=given, epochs=1, **how)

    whole, parts = weights(recipe(16, 1))["student"], weights(recipe(8, 2))["student"]
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)


def test_clip_limits_how_far_an_update_goes():
    start = Small(4)

    def moved(clip: float | None) -> float:
        net = Net("student", copy.deepcopy(start))
        kdkit.run(
            alone(net, epochs=1, batch_size=32, max_grad_norm=clip, optimizer=Optimizer(SGD, lr=1.0)), device="cpu"
        )
        pairs = zip(net.module.parameters(), start.parameters(), strict=True)
        return float(sum((after - before).detach().square().sum() for after, before in pairs) ** 0.5)

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(None) > 0.05


def test_the_average_of_the_weights_is_what_is_judged_and_kept():
    start, said = Small(4, dropout=0.0), []

    class Kept(Listed):
        def compute(self, test: Any) -> MetricResult:
            said.append(test.outputs.copy())
            return MetricResult(value=float(len(said)))

    def recipe(average: AverageWeights | None) -> Recipe:
        return alone(Net("student", copy.deepcopy(start)), epochs=2, ema=average, metrics=(Kept(),))

    plain = kdkit.run(recipe(None), device="cpu").student.module
    said.clear()
    averaged = kdkit.run(recipe(AverageWeights(decay=0.9)), device="cpu").student.module
    assert not torch.allclose(plain.head.weight, averaged.head.weight, atol=1e-4)
    averaged.eval()
    with torch.no_grad():
        now = averaged(samples(24, 1).tensors[0]).numpy()
    _checked, first, second = said[:3]
    assert (second == now).all()
    assert (first != now).any()


def test_the_average_is_that_of_torch():
    start, inputs = Small(4, dropout=0.0), samples(32)
    net = Net("student", copy.deepcopy(start))
    given = TorchData(inputs, samples(24, 1), classes=("a", "b", "c"))
    how = {"epochs": 3, "batch_size": 32, "optimizer": Optimizer(SGD, lr=0.1), "keep": "last"}
    kdkit.run(alone(net, given=given, ema=AverageWeights(decay=0.5), **how), device="cpu")
    module, expected = copy.deepcopy(start), None
    optimizer = SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs.tensors[0]), inputs.tensors[1]).backward()
        optimizer.step()
        now = module.head.weight.detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
    torch.testing.assert_close(net.module.head.weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_on_cpu(precision):
    teacher, student = Net("teacher", Small(8)), Net("student", Small(4))
    kinds = []

    def kd_loss(student: Tensor, target: Tensor) -> Tensor:
        kinds.append((student.dtype, target.dtype))
        return nn.functional.mse_loss(student, target)

    schedule = Sequential(
        teacher, student, truth=truth(), kd_loss=kd_loss, training=training(epochs=12, max_grad_norm=1.0)
    )
    result = kdkit.run(Recipe(data=data(), schedule=schedule), device="cpu", precision=precision)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert kinds[-1] == (half, half)
    assert student.module.head.weight.dtype == torch.float32
    assert result.metrics["student"]["accuracy"].value > 0.5
    first, last = (result.history["student"][index]["terms"]["truth"] for index in (0, -1))
    assert last < first


def test_ramps_follow_the_progress_of_the_stage():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    objective = LinearRamp(start=1.0, end=0.0) * truth() + LinearRamp() * Match(teacher, SoftTargets())
    listener = Listener()
    recipe = Recipe(data=data(), schedule=[Stage({student: objective}, training(epochs=4))])
    kdkit.run(recipe, device="cpu", callbacks=[listener])
    shares = [(epoch.weights["truth"], epoch.weights["teacher/soft_targets"]) for epoch in listener.epochs]
    assert shares == [(0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]


def test_a_ramp_that_is_zero_for_now_moves_nothing():
    start = Small(4)
    teacher = Net("teacher", Small(8), trained=True)

    def after(factor: Any) -> dict[str, Tensor]:
        student = Net("student", copy.deepcopy(start))
        objective = truth() + factor * Match(teacher, SoftTargets())
        recipe = Recipe(data=data(), schedule=[Stage({student: objective}, training(epochs=1, keep="last"))])
        return weights(recipe)["student"]

    never_yet = LinearRamp(after=0.99, until=1.0)  # the last update is made at progress 0.75
    assert all(torch.allclose(value, after(0.0)[key]) for key, value in after(never_yet).items())
    assert not same(after(1.0), after(never_yet))


# What losses ask for, and losses that learn


def test_a_loss_gets_the_labels_ids_and_progress_that_it_asks_for():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    given = data()
    seen: list[tuple[Tensor, Tensor, float]] = []

    def curious(student: Tensor, target: Tensor, *, labels: Tensor, ids: Tensor, progress: Tensor) -> Tensor:
        seen.append((labels.clone(), ids.clone(), float(progress)))
        return nn.functional.mse_loss(student, target)

    recipe = Recipe(data=given, schedule=[Stage({student: truth() + Match(teacher, curious)}, training())])
    kdkit.run(recipe, device="cpu")
    steps = seen[-8:]
    labels = samples(32).tensors[1]
    assert all(torch.equal(labels[ids], asked) for asked, ids, _ in steps)
    assert sorted(torch.cat([ids for _, ids, _ in steps[:4]]).tolist()) == list(range(32))
    assert [progress for _, _, progress in steps] == [index / 8 for index in range(8)]


def test_a_loss_with_weights_is_trained_and_saved_but_is_no_part_of_the_net(tmp_path):
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    hint = Hint()
    seen = []
    hint.register_forward_hook(lambda module, *_: seen.append(copied(module)))
    match = Match(teacher, hint, student=Tap(student.module.body), target=Tap(teacher.module.body))
    recipe = Recipe(data=data(), schedule=[Stage({student: truth() + match}, training())])
    keys = set(student.module.state_dict())
    states = []

    class Peek:
        @hookimpl
        def run_ended(self, event: Any) -> None: ...

        @hookimpl
        def stage_started(self, event: Any) -> None: ...

        @hookimpl
        def epoch_ended(self, event: Any) -> None:
            path = tmp_path / "run" / "1-student" / "state.pt"
            if path.exists():
                states.append(torch.load(path, weights_only=True))

    kdkit.run(recipe, device="cpu", out=tmp_path / "run", callbacks=[Peek()])
    assert not same(seen[-8], seen[-1])
    assert any("projector" in key for key in states[0]["work"]["lesson"])
    saved = (tmp_path / "run" / "1-student").glob("weights*.safetensors")
    from safetensors.torch import load_file

    assert [set(load_file(path)) for path in saved] == [keys]
    assert set(student.module.state_dict()) == keys


def test_a_loss_that_is_no_number_any_more_stops_the_run_and_says_where():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))

    def bursting(student: Tensor, target: Tensor, progress: Tensor) -> Tensor:
        return nn.functional.mse_loss(student, target) * (math.inf if progress > 0.5 else 1.0)

    listener = Listener()
    recipe = Recipe(data=data(), schedule=[Stage({student: truth() + Match(teacher, bursting)}, training())])
    with pytest.raises(KdkitError, match=r"stage 'student':.*'teacher/bursting'.*epoch 2.*learning rate"):
        kdkit.run(recipe, device="cpu", callbacks=[listener])
    assert isinstance(listener.ended[0].error, KdkitError)
    assert len(listener.epochs) == 1


# Learning rates


def test_a_learning_rate_by_epoch_changes_after_epochs():
    listener = Listener()
    rate = LRSchedule(MultiStepLR, milestones=[2, 3], gamma=0.1)
    kdkit.run(alone(epochs=4, lr_schedule=rate), device="cpu", callbacks=[listener])
    assert [epoch.learning_rate for epoch in listener.epochs] == pytest.approx([0.1, 0.01, 0.001, 0.001])


def test_a_learning_rate_by_update_changes_after_updates():
    rates = []

    class Noting(SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    rate = LRSchedule(OneCycleLR, interval="update", max_lr=0.5)
    recipe = alone(epochs=3, lr_schedule=rate, optimizer=Optimizer(Noting, lr=0.1, momentum=0.9))
    kdkit.run(recipe, device="cpu")
    module = nn.Linear(1, 1)
    expected = SGD(module.parameters(), lr=0.1, momentum=0.9)
    schedule = OneCycleLR(expected, max_lr=0.5, total_steps=12)
    wanted = []
    for _ in range(12):
        wanted.append(expected.param_groups[0]["lr"])
        expected.step()
        schedule.step()
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("each", ["epoch", "update"])
def test_timms_cosine_goes_from_the_rate_to_almost_nothing(each):
    listener = Listener()
    rate = LRSchedule("cosine", interval=each)
    kdkit.run(alone(epochs=4, lr_schedule=rate), device="cpu", callbacks=[listener])
    rates = [epoch.learning_rate for epoch in listener.epochs]
    wanted = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3)]
    assert rates[:3] == pytest.approx(wanted, abs=1e-6)
    assert rates[3] < 0.01


def test_timms_optimizers_go_by_name():
    start = Small(4)
    net = Net("student", copy.deepcopy(start))
    kdkit.run(alone(net, optimizer=Optimizer("lamb", lr=0.01)), device="cpu")
    assert not same(net.module.state_dict(), start.state_dict())
    with pytest.raises(KdkitError, match=r"'lambb'.*did you mean"):
        kdkit.run(alone(optimizer=Optimizer("lambb", lr=0.01)), device="cpu")


@pytest.mark.parametrize(
    "rate",
    [("plateau", {}), (ReduceLROnPlateau, {}), ("cosinee", {}), (MultiStepLR, {}), (OneCycleLR, {})],
    ids=["timm plateau", "torch plateau", "misspelt", "incomplete", "incomplete too"],
)
def test_a_learning_rate_that_cannot_work_is_refused_before_the_first_step(rate):
    listener = Listener()
    make, options = rate
    with pytest.raises(KdkitError, match=r"plateau|cosinee|MultiStepLR|OneCycleLR"):
        kdkit.run(
            lambda: three(Sequential, training=training(lr_schedule=LRSchedule(make, **options))),
            device="cpu",
            callbacks=[listener],
        )
    assert not listener.runs


def test_options_of_the_last_stage_are_refused_before_the_first_one_runs():
    listener = Listener()
    one, two = Net("one", Small(4)), Net("two", Small(4))
    wrong = training(optimizer=Optimizer(SGD, lr=-1.0))
    recipe = Recipe(data=data(), schedule=[Stage({one: truth()}, training()), Stage({two: truth()}, wrong)])
    with pytest.raises(kdkit.errors.CheckError, match=r"stage 'two'.*learning rate"):
        kdkit.run(recipe, device="cpu", callbacks=[listener])
    assert not listener.runs


# Recipes and data


def test_a_recipe_runs_once():
    recipe = three()
    kdkit.run(recipe, device="cpu")
    with pytest.raises(RecipeError, match="has run already"):
        kdkit.run(recipe, device="cpu")


def test_a_function_that_makes_no_recipe_is_refused():
    with pytest.raises(RecipeError, match=r"kdkit\.Recipe.*NoneType"):
        kdkit.run(lambda: None, device="cpu")
    with pytest.raises(RecipeError, match=r"kdkit\.Recipe.*str"):
        kdkit.run("recipe.py", device="cpu")


def test_options_are_given_once():
    with pytest.raises(RecipeError, match="seed"):
        kdkit.run(three, kdkit.RunOptions(), seed=3)
    with pytest.raises(RecipeError, match="sede"):
        kdkit.run(three, sede=3)


def test_a_run_folder_may_be_named_by_a_string(tmp_path):
    result = kdkit.run(alone(), device="cpu", out=str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.json").exists()
    assert result.folder == tmp_path / "run"


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kdkit.run(alone(), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_writes_nothing(tmp_path):
    teacher = Net("teacher", Small(8))
    recipe = Recipe(
        data=data(), schedule=[Stage({Net("student", Small(4)): Match(teacher, SoftTargets())}, training())]
    )
    with pytest.raises(kdkit.errors.CheckError, match="neither trained in an earlier stage nor given weights"):
        kdkit.run(recipe, device="cpu", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class Plain(Dataset[Any]):
    """A dataset that torch knows nothing about."""

    def __init__(self, tensors: TensorDataset) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> Any:
        return self.tensors[index]


def test_unknown_randomness_is_noticed():
    listener = Listener()
    given = TorchData(Plain(samples(32)), Plain(samples(24, 1)), classes=("a", "b", "c"))
    assert given.draws is None
    kdkit.run(alone(given=given), device="cpu", callbacks=[listener])
    notices = " ".join(listener.runs[0].notices)
    assert "randomness is its own" in notices
    assert "no test split" in notices
    quiet = Listener()
    kdkit.run(alone(), device="cpu", callbacks=[quiet])
    assert quiet.runs[0].notices == ()


def test_a_loader_of_ones_own_keeps_its_order_and_size():
    sizes = []

    def noting(outputs: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        return nn.functional.cross_entropy(outputs, labels)

    train = DataLoader(samples(30), batch_size=12, shuffle=True)
    given = TorchData(train, DataLoader(samples(24, 1), batch_size=24), classes=("a", "b", "c"))
    listener = Listener()
    result = kdkit.run(alone(given=given, objective=Truth(noting), epochs=6), device="cpu", callbacks=[listener])
    assert sizes[-3:] == [12, 12, 6]
    assert result.reported_on == "validation"
    assert result.metrics["student"]["accuracy"].value > 0.5
    assert any("randomness" in notice for notice in listener.runs[0].notices)


def test_a_loader_of_a_stream_without_length_is_refused():
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from samples(8)

    with pytest.raises(DataError, match="length"):
        TorchData(DataLoader(Endless()), samples(24), classes=("a", "b", "c"))


def test_the_same_loader_gives_the_same_run():
    def recipe() -> Recipe:
        train = DataLoader(samples(32), batch_size=8, shuffle=True)
        return alone(given=TorchData(train, samples(24, 1), classes=("a", "b", "c")))

    first, again = (kdkit.run(recipe, device="cpu", seed=5) for _ in range(2))
    assert told(first.history) == told(again.history)


# Compiled


@pytest.fixture
def eagerly(monkeypatch):
    """Let torch.compile trace as always, but run what it traced without generating code."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tapped() -> Recipe:
    teacher, student = Net("teacher", Small(8, dropout=0.0)), Net("student", Small(4, dropout=0.0))

    def match(net: Net[Any], master: Net[Any]) -> Any:
        feature = Match(master, Hint(), student=Tap(net.module.norm), target=Tap(master.module.norm))
        return Match(master, SoftTargets()) + 0.5 * feature

    schedule = Sequential(teacher, student, truth=truth(), match=match, training=training(epochs=2))
    return Recipe(data=data(30), schedule=schedule)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_compiled_lesson_gives_the_same_losses_and_its_taps_fire(eagerly):
    plain, compiled = (kdkit.run(tapped, device="cpu", compile=each) for each in (False, True))
    assert "teacher/hint" in plain.history["student"][0]["terms"]
    for (stage, one), (_, other) in zip(told(plain.history), told(compiled.history), strict=True):
        assert one == pytest.approx(other, rel=1e-5), stage
    for key, value in plain.student.module.state_dict().items():
        torch.testing.assert_close(compiled.student.module.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_lesson_compiled_by_inductor_gives_the_same_losses():
    plain, compiled = (kdkit.run(tapped, device="cpu", compile=each) for each in (False, True))
    for (stage, one), (_, other) in zip(told(plain.history), told(compiled.history), strict=True):
        assert one == pytest.approx(other, rel=1e-3), stage


def test_adam_is_the_default():
    assert kdkit.Training(epochs=1).optimizer.make is Adam


# What a run leaves alone


def test_a_run_leaves_the_random_states_of_its_caller():
    recipe = alone(Net("student", Small(4)), epochs=1)
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    kdkit.run(recipe, device="cpu")
    assert torch.equal(torch.rand(2), wanted)


def test_a_frozen_part_stays_in_eval_mode_so_that_its_batch_norm_does_not_drift():
    net = Net("student", Small(4))
    net.module.norm.requires_grad_(False)
    before = copied(net.module.norm)
    kdkit.run(alone(net, epochs=2), device="cpu")
    assert same(net.module.norm.state_dict(), before)


@pytest.mark.parametrize("length", [1, 9])
def test_a_loader_that_gives_other_than_it_promises_stops_the_run(length):
    class Loader(DataLoader):
        def __len__(self) -> int:
            return length

    given = TorchData(Loader(samples(32), batch_size=8), samples(24, 1), classes=("a", "b", "c"))
    recipe = Recipe(data=given, schedule=[Stage({Net("student", Small(4)): truth()}, training())])
    with pytest.raises(DataError, match=rf"promised {length} batches an epoch, and gave (more|4)"):
        kdkit.run(recipe, device="cpu")
