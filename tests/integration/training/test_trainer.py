"""Whole runs of tiny nets: which parts are trained, which stay unchanged, and that one seed gives one result."""

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kdkit
from kdkit import (
    DataError,
    KdkitError,
    Level,
    LinearRamp,
    Match,
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
from kdkit.errors import CheckError
from kdkit.losses import Hint, SoftTargets
from tests.helpers.callbacks import Recorder
from tests.helpers.datasets import Rows
from tests.helpers.stages import (
    Small,
    assert_same_results,
    copied,
    data,
    epoch_terms,
    last_checkpoint,
    one_stage,
    same,
    samples,
    three,
    training,
    truth,
)


def weights(recipe: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    return {name: copied(net.module) for name, net in kdkit.run(recipe, device="cpu", **options).nets.items()}


# One seed, one run


@pytest.mark.parametrize("schedule", [MultiLevel, Parallel, Sequential])
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(schedule):
    # A function that makes the recipe, since a run seeds the initial weights only of nets that are made inside it.
    first, again, reseeded = (kdkit.run(lambda: three(schedule), device="cpu", seed=seed) for seed in (3, 3, 4))
    assert_same_results(first, again)
    for name in ("teacher", "assistant", "student"):
        assert not same(first.nets[name].module.state_dict(), reseeded.nets[name].module.state_dict())
    assert epoch_terms(first.history) != epoch_terms(reseeded.history)


@pytest.mark.parametrize("repetition", range(2))
def test_each_test_starts_from_the_same_random_state(repetition):
    # Else the nets that a test makes outside a run depend on the tests before it, and some of them do not learn.
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator()))


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from the global random generator."""

    def __init__(self, rows: int) -> None:
        self.rows = samples(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = self.rows[index]
        return inputs + 0.1 * torch.randn_like(inputs), label


@pytest.mark.parametrize(("dropout", "noisy"), [(0.0, False), (0.5, False), (0.5, True)])
def test_data_loading_workers_change_no_number(dropout, noisy):
    def recipe(workers: int) -> Recipe:
        splits = TorchData(Noisy(32), samples(24, 1), classes=("a", "b", "c")) if noisy else data()
        return one_stage(Net("student", Small(4, dropout=dropout)), splits=splits, epochs=2, workers=workers)

    assert_same_results(*(kdkit.run(lambda count=count: recipe(count), device="cpu") for count in (0, 2)))


# Teachers, and the parts that a run leaves unchanged


def test_the_net_trained_in_one_stage_teaches_in_the_next():
    teacher, student = Net("teacher", Small(8)), Net("student", Small(4))
    calls = []  # (teacher output, teacher weights, teacher in training mode, teacher output requires grad)

    def recording(student_out: Tensor, target: Tensor) -> Tensor:
        calls.append((target.detach().clone(), copied(teacher.module), teacher.module.training, target.requires_grad))
        return nn.functional.mse_loss(student_out, target)

    recipe = Recipe(
        data=data(), schedule=Sequential(teacher, student, truth=truth(), kd_loss=recording, training=training())
    )
    before = copied(teacher.module)
    result = kdkit.run(recipe, device="cpu")
    assert result.nets["teacher"] is teacher
    assert not same(before, teacher.module.state_dict())
    # The check calls the loss too, before the teacher is trained.
    trained = [weights for _, weights, _, _ in calls if not same(weights, before)]
    assert len(trained) >= 8  # 2 epochs of 4 batches
    assert all(same(weights, teacher.module.state_dict()) for weights in trained)
    assert not any(in_training or requires_grad for _, _, in_training, requires_grad in calls)


def test_a_teachers_buffers_and_modes_do_not_change_while_it_teaches():
    teacher = Net("teacher", Small(8), trained=True)
    teacher.module.train()
    teacher.module.norm.eval()  # modes differ between submodules, so that each one has to be restored
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
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())

    def broken(student: Tensor, target: Tensor, progress: Tensor) -> Tensor:
        if progress > 0.5:  # not before, or the check would fail and the run not start
            raise RuntimeError("broken on purpose")
        return nn.functional.mse_loss(student.mean(1), target.mean(1))

    for loss in (Hint(), broken):
        teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
        match = Match(teacher, loss, student=Tap(student.module.body), target=Tap(teacher.module.body))
        recipe = one_stage(student, truth() + match)
        if loss is broken:
            with pytest.raises(RuntimeError, match="broken on purpose"):
                kdkit.run(recipe, device="cpu")
        else:
            kdkit.run(recipe, device="cpu")
        assert hooks(teacher.module) == hooks(student.module) == 0


def test_a_level_has_separate_training_options_and_teacher_weights():
    def recipe() -> Recipe:
        nets = Net("teacher", Small(8)), Net("assistant", Small(6)), Net("student", Small(4))
        level = Level(nets[2], training=training(epochs=1), teacher_weights=(0.75, 0.25), label_weight=0.2)
        options = {"truth": truth(), "kd_loss": SoftTargets(), "training": training(epochs=2)}
        return Recipe(data=data(), schedule=MultiLevel(nets[0], nets[1], level, **options))

    recorder = Recorder()
    result = kdkit.run(recipe, device="cpu", callbacks=[recorder])
    assert [len(result.history[name]) for name in ("teacher", "assistant", "student")] == [2, 2, 1]
    # The labels have 0.2; the teachers share the rest, 0.8, in parts of 0.75 and 0.25.
    expected = {"truth": 0.2, "teacher/soft_targets": 0.6, "assistant/soft_targets": 0.2}
    assert recorder.epochs[-1].weights == pytest.approx(expected)


def test_the_predictions_of_a_net_trained_twice_are_in_its_last_stage(tmp_path):
    student, second_net = Net("student", Small(4)), Net("other", Small(4))
    stages = [
        Stage({student: truth()}, training(epochs=1), name="first"),
        Stage({second_net: truth()}, training(epochs=1)),
        Stage({student: truth()}, training(epochs=1), name="second"),
    ]
    result = kdkit.run(Recipe(data=data(), schedule=stages), device="cpu", out=tmp_path / "run")
    assert result.student is student
    assert (tmp_path / "run" / "3-second" / "predictions-student-test.safetensors").exists()
    assert not (tmp_path / "run" / "1-first" / "predictions-student-test.safetensors").exists()


def test_two_nets_can_be_trained_in_one_stage():
    nets = Net("one", Small(4)), Net("two", Small(6))
    recipe = Recipe(data=data(), schedule=[Stage({net: truth() for net in nets}, training())])
    before = [copied(net.module) for net in nets]
    result = kdkit.run(recipe, device="cpu")
    assert set(result.history["one+two"][0]["terms"]) == {"one: truth", "two: truth"}
    assert not any(same(weights, net.module.state_dict()) for weights, net in zip(before, nets, strict=True))


@pytest.mark.parametrize("name", ["half", "train", "keys", "forward", "a b+c"])
# nn.ModuleDict refuses the names of its methods, and names with dots.
def test_a_net_and_a_term_may_have_the_name_of_a_method(name):
    teacher = Net("teacher", Small(8), trained=True)
    student = Net(name, Small(4))
    objective = truth() + Match(teacher, nn.MSELoss(), label=name)
    result = kdkit.run(one_stage(student, objective, epochs=1), device="cpu")
    assert set(result.history[name][0]["terms"]) == {"truth", name}


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".."])
def test_the_name_of_a_stage_is_the_name_of_a_folder(name):
    if not name:  # an empty name is the default: the names of the nets
        assert Stage({Net("student", Small(4)): truth()}, training(), name=name).name == "student"
        return
    with pytest.raises(RecipeError, match="letters, digits"):
        Stage({Net("student", Small(4)): truth()}, training(), name=name)


# The optimizer step


def test_max_grad_norm_limits_the_length_of_an_update():
    start = Small(4)

    def moved(max_grad_norm: float | None) -> float:
        net = Net("student", copy.deepcopy(start))
        kdkit.run(
            one_stage(net, epochs=1, batch_size=32, max_grad_norm=max_grad_norm, optimizer=Optimizer(SGD, lr=1.0)),
            device="cpu",
        )
        pairs = zip(net.module.parameters(), start.parameters(), strict=True)
        return float(sum((after - before).detach().square().sum() for after, before in pairs) ** 0.5)

    # One step of plain SGD with a learning rate of 1 moves the weights by the gradient.
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(None) > 0.05


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_on_cpu(precision):
    teacher, student = Net("teacher", Small(8)), Net("student", Small(4))
    dtypes = []

    def kd_loss(student: Tensor, target: Tensor) -> Tensor:
        dtypes.append((student.dtype, target.dtype))
        return nn.functional.mse_loss(student, target)

    schedule = Sequential(
        teacher, student, truth=truth(), kd_loss=kd_loss, training=training(epochs=12, max_grad_norm=1.0)
    )
    result = kdkit.run(Recipe(data=data(), schedule=schedule), device="cpu", precision=precision)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert dtypes[-1] == (half, half)
    assert student.module.head.weight.dtype == torch.float32  # autocast keeps the weights in single precision
    assert result.metrics["student"]["accuracy"].value > 0.5
    first, last = (result.history["student"][index]["terms"]["truth"] for index in (0, -1))
    assert last < first


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_modes_of_torch_in_user_code_do_not_change_a_run(precision):
    plain = kdkit.run(three, device="cpu", precision=precision)
    # Inside an outer autocast, torch keeps the half-precision copies of the weights from one step to the next.
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast("cpu", dtype=dtype), torch.inference_mode(), torch.device("meta"):
        inside = kdkit.run(three, device="cpu", precision=precision)
    assert_same_results(inside, plain)


def test_gradients_that_user_code_turns_off_and_leaves_off_do_not_change_a_run():
    class Callback:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            torch.set_grad_enabled(False)

    def turned_off() -> Recipe:
        made = three()
        torch.set_grad_enabled(False)
        return made

    assert_same_results(kdkit.run(turned_off, device="cpu", callbacks=[Callback()]), kdkit.run(three, device="cpu"))
    assert torch.is_grad_enabled()


def test_ramps_follow_the_progress_of_the_stage():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    objective = LinearRamp(start=1.0, end=0.0) * truth() + LinearRamp() * Match(teacher, SoftTargets())
    recorder = Recorder()
    recipe = one_stage(student, objective, epochs=4)
    kdkit.run(recipe, device="cpu", callbacks=[recorder])
    weights = [(epoch.weights["truth"], epoch.weights["teacher/soft_targets"]) for epoch in recorder.epochs]
    assert weights == [(0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]


def test_a_ramp_that_is_still_zero_has_no_effect():
    start = Small(4)
    teacher = Net("teacher", Small(8), trained=True)

    def after(factor: Any) -> dict[str, Tensor]:
        student = Net("student", copy.deepcopy(start))
        objective = truth() + factor * Match(teacher, SoftTargets())
        recipe = one_stage(student, objective, epochs=1, keep="last")
        return weights(recipe)["student"]

    too_late = LinearRamp(after=0.99, until=1.0)  # the last update happens at progress 0.75
    assert all(torch.allclose(value, after(0.0)[key]) for key, value in after(too_late).items())
    assert not same(after(1.0), after(too_late))


# Arguments of losses, and losses with weights


def test_a_loss_gets_the_labels_ids_and_progress_of_its_signature():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    splits = data()
    seen: list[tuple[Tensor, Tensor, float]] = []

    def curious(student: Tensor, target: Tensor, *, labels: Tensor, ids: Tensor, progress: Tensor) -> Tensor:
        seen.append((labels.clone(), ids.clone(), float(progress)))
        return nn.functional.mse_loss(student, target)

    recipe = one_stage(student, truth() + Match(teacher, curious), splits=splits)
    kdkit.run(recipe, device="cpu")
    steps = seen[-8:]  # the calls before are those of the check
    labels = samples(32).tensors[1]
    assert all(torch.equal(labels[ids], batch_labels) for batch_labels, ids, _ in steps)
    assert sorted(torch.cat([ids for _, ids, _ in steps[:4]]).tolist()) == list(range(32))
    assert [progress for _, _, progress in steps] == [index / 8 for index in range(8)]


def test_a_loss_with_weights_is_trained_and_checkpointed_but_not_part_of_the_net(tmp_path):
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    hint = Hint()
    seen = []
    hint.register_forward_hook(lambda module, *_: seen.append(copied(module)))
    match = Match(teacher, hint, student=Tap(student.module.body), target=Tap(teacher.module.body))
    recipe = one_stage(student, truth() + match)
    keys = set(student.module.state_dict())
    states = []

    class Peek:
        @hookimpl
        def epoch_ended(self, event: Any) -> None:
            if event.epoch:  # from the second epoch on: a thread writes a checkpoint after the callbacks
                while (state := last_checkpoint(tmp_path / "run" / "1-student")) is None:
                    time.sleep(0.01)
                states.append(state)

    kdkit.run(recipe, device="cpu", out=tmp_path / "run", callbacks=[Peek()])
    assert not same(seen[-8], seen[-1])
    assert any("projector" in key for key in states[0]["train_state"]["module"])
    saved = (tmp_path / "run" / "1-student").glob("weights*.safetensors")
    assert [set(load_file(path)) for path in saved] == [keys]
    assert set(student.module.state_dict()) == keys


def test_a_loss_that_stops_being_finite_stops_the_run_and_is_named():
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))

    def exploding(student: Tensor, target: Tensor, progress: Tensor) -> Tensor:
        return nn.functional.mse_loss(student, target) * (math.inf if progress > 0.5 else 1.0)

    recorder = Recorder()
    recipe = one_stage(student, truth() + Match(teacher, exploding))
    with pytest.raises(KdkitError, match=r"stage 'student':.*'teacher/exploding'.*epoch 2.*learning rate"):
        kdkit.run(recipe, device="cpu", callbacks=[recorder])
    assert isinstance(recorder.ends[0].error, KdkitError)
    assert len(recorder.epochs) == 1  # the epoch that failed is not reported


# Recipes and data


def test_a_recipe_can_run_only_once():
    recipe = three()
    kdkit.run(recipe, device="cpu")
    with pytest.raises(RecipeError, match="has already run"):
        kdkit.run(recipe, device="cpu")


def test_a_function_that_returns_no_recipe_is_refused():
    with pytest.raises(RecipeError, match=r"kdkit\.Recipe.*NoneType"):
        kdkit.run(lambda: None, device="cpu")
    with pytest.raises(RecipeError, match=r"kdkit\.Recipe.*str"):
        kdkit.run("recipe.py", device="cpu")


def test_an_option_is_refused_twice_and_if_misspelt():
    with pytest.raises(RecipeError, match="seed"):
        kdkit.run(three, kdkit.RunOptions(), seed=3)
    with pytest.raises(RecipeError, match="sede"):
        kdkit.run(three, sede=3)


def test_a_run_folder_may_be_a_string(tmp_path):
    result = kdkit.run(one_stage(), device="cpu", out=str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.json").exists()
    assert result.folder == tmp_path / "run"


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kdkit.run(one_stage(), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_writes_nothing(tmp_path):
    teacher = Net("teacher", Small(8))
    message = "'teacher' teaches, but it is not trained in an earlier stage and has no weights"
    with pytest.raises(CheckError, match=message):
        kdkit.run(one_stage(objective=Match(teacher, SoftTargets())), device="cpu", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_unknown_randomness_causes_a_notice():
    recorder = Recorder()
    splits = TorchData(Rows(samples(32)), Rows(samples(24, 1)), classes=("a", "b", "c"))
    assert splits.draws is None
    kdkit.run(one_stage(splits=splits), device="cpu", callbacks=[recorder])
    notices = " ".join(recorder.notices)
    assert "the data may draw random numbers" in notices
    assert "no test split" in notices
    quiet = Recorder()
    kdkit.run(one_stage(), device="cpu", callbacks=[quiet])
    assert quiet.notices == []


def test_a_user_defined_loader_keeps_its_order_and_size():
    sizes = []

    def recording(outputs: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        return nn.functional.cross_entropy(outputs, labels)

    train = DataLoader(samples(30), batch_size=12, shuffle=True)
    splits = TorchData(train, DataLoader(samples(24, 1), batch_size=24), classes=("a", "b", "c"))
    recorder = Recorder()
    result = kdkit.run(
        one_stage(splits=splits, objective=Truth(recording), epochs=6), device="cpu", callbacks=[recorder]
    )
    assert sizes[-3:] == [12, 12, 6]  # not the batch size of the training options, 8
    assert result.reported_on == "validation"  # there is no test split
    assert result.metrics["student"]["accuracy"].value > 0.5
    assert any("may draw random numbers" in notice for notice in recorder.notices)


def test_a_loader_without_a_length_is_refused():
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from samples(8)

    data = TorchData(DataLoader(Endless(), batch_size=4), samples(24), classes=("a", "b", "c"))
    with pytest.raises(CheckError, match=r"\(Endless\) has no length; .* Training\(steps_per_epoch="):
        kdkit.run(one_stage(splits=data), device="cpu")


def test_the_same_loader_gives_the_same_run():
    def recipe() -> Recipe:
        train = DataLoader(samples(32), batch_size=8, shuffle=True)
        return one_stage(splits=TorchData(train, samples(24, 1), classes=("a", "b", "c")))

    first, again = (kdkit.run(recipe, device="cpu", seed=5) for _ in range(2))
    assert epoch_terms(first.history) == epoch_terms(again.history)


# torch.compile


@pytest.fixture
def eagerly(monkeypatch):
    """Let torch.compile trace as usual, but run the graphs without generating code, which takes seconds."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tapped() -> Recipe:
    teacher, student = Net("teacher", Small(8, dropout=0.0)), Net("student", Small(4, dropout=0.0))

    def match(net: Net[Any], teacher: Net[Any]) -> Any:
        hint = Match(teacher, Hint(), student=Tap(net.module.norm), target=Tap(teacher.module.norm))
        return Match(teacher, SoftTargets()) + 0.5 * hint

    schedule = Sequential(teacher, student, truth=truth(), match=match, training=training(epochs=2))
    return Recipe(data=data(30), schedule=schedule)  # the last batch has 6 samples instead of 8: a second shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_compiled_stage_has_the_same_losses_and_its_taps_fire(eagerly):
    plain, compiled = (kdkit.run(tapped, device="cpu", compile=compiled) for compiled in (False, True))
    assert "teacher/hint" in plain.history["student"][0]["terms"]
    for (stage, terms), (_, expected) in zip(epoch_terms(compiled.history), epoch_terms(plain.history), strict=True):
        assert terms == pytest.approx(expected, rel=1e-5), stage
    for key, value in plain.student.module.state_dict().items():
        torch.testing.assert_close(compiled.student.module.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_stage_compiled_by_inductor_has_the_same_losses():
    plain, compiled = (kdkit.run(tapped, device="cpu", compile=compiled) for compiled in (False, True))
    for (stage, terms), (_, expected) in zip(epoch_terms(compiled.history), epoch_terms(plain.history), strict=True):
        assert terms == pytest.approx(expected, rel=1e-3), stage


def test_adam_is_the_default():
    assert kdkit.Training(epochs=1).optimizer.make is Adam


# State that a run leaves unchanged


def test_a_run_restores_the_random_state_of_its_caller():
    recipe = one_stage(epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    kdkit.run(recipe, device="cpu")
    assert torch.equal(torch.rand(2), expected)


def test_the_batch_norm_of_a_frozen_part_does_not_drift():
    net = Net("student", Small(4))
    net.module.norm.requires_grad_(False)
    before = copied(net.module.norm)
    kdkit.run(one_stage(net, epochs=2), device="cpu")
    assert same(net.module.norm.state_dict(), before)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (1, r"must have 1 batches per epoch, its length, but has more; .*, pass Training\(steps_per_epoch=N\)"),
        (9, "must have 9 batches per epoch, its length, but has 4"),
    ],
    ids=["too short", "too long"],
)
@pytest.mark.parametrize("accumulate", [1, 2, 3])  # batches of an update are read before it
def test_a_loader_with_a_wrong_length_stops_the_run(length, message, accumulate):
    class Loader(DataLoader):
        def __len__(self) -> int:
            return length

    splits = TorchData(Loader(samples(32), batch_size=8), samples(24, 1), classes=("a", "b", "c"))
    with pytest.raises(DataError, match=message):
        kdkit.run(one_stage(splits=splits, accumulate_steps=accumulate), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [nn.HuberLoss(), nn.BCELoss()])
def test_labels_of_another_precision_than_the_network_are_converted(dtype, loss):
    """As those of NumPy arrays. Some losses of torch take no two dtypes, one of them in its backward pass only."""
    inputs, _ = samples(16).tensors
    data = TensorDataset(inputs, (inputs[:, :3] > 0).to(dtype))
    schedule = [Stage({Net("student", nn.Sequential(Small(4), nn.Sigmoid())): Truth(loss)}, training(epochs=1))]
    result = kdkit.run(Recipe(data=TorchData(data, data, task="regression"), schedule=schedule))
    assert math.isfinite(result.metrics["student"]["r2"].value)
