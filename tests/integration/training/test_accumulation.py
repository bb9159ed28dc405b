"""An update of several batches, or of the parts of several processes, is that of one batch of all their rows."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import IgnoreUnknown, Masked, PerPosition, SampleWeighted, SoftTargets
from kdkit.recipe.balancing import UncertaintyWeighting
from tests.helpers.callbacks import KillAtStep, Recorder, kill_run
from tests.helpers.ranks import in_two_processes
from tests.helpers.stages import assert_same_results

ROWS, CLASSES = 12, ("a", "b", "c")
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(ROWS, 8, generator=GENERATOR)
TEXTS = torch.randn(ROWS, 8, 5, generator=GENERATOR)  # of five tokens
MASK = torch.arange(5) < torch.tensor([1, 5, 1, 2, 5, 5, 1, 1, 1, 1, 1, 1])[:, None]
LABELS = torch.arange(ROWS) % 3
FEW = LABELS.masked_fill(torch.arange(ROWS) < 5, -100)
TOKENS = torch.where(MASK, torch.arange(ROWS * 5).view(ROWS, 5) % 3, -100)
UNKNOWN = (INPUTS[:, :3] > 0).float()
UNKNOWN[:7] = -1
WEIGHTS = torch.arange(ROWS).float()
VECTOR = torch.tensor([5.0, 1.0, 0.1])
torch.manual_seed(0)
LINEAR, TEACHER = nn.Linear(8, 3), nn.Linear(8, 3)


class Tagger(nn.Module):
    """Classifies every token; it does not need the mask."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(8, 4, 1), nn.Conv1d(4, 3, 1)

    def forward(self, x, attention_mask=None):
        return self.head(self.body(x))


class Attentive(nn.Module):
    """Classifies every token by attention to all of them."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Conv1d(8, 3, 1)

    def forward(self, x, attention_mask=None):
        tokens = x.mT
        return self.head(self.attention(tokens, tokens, tokens, average_attn_weights=False)[0].mT)


TAGGER, TUTOR, ATTENTIVE, MODEL = Tagger(), Tagger(), Attentive(), Attentive()


class Dicts(Dataset):
    """Texts with their mask and a label for each token."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return {"x": TEXTS[index], "attention_mask": MASK[index]}, TOKENS[index]


def cross_entropy(**options):
    return lambda net: Truth(nn.CrossEntropyLoss(**options))


def matched(teacher, loss, **taps):
    return lambda net: Match(
        Net("teacher", teacher, trained=True),
        copy.deepcopy(loss),
        **{side: get(net.module if side == "student" else teacher) for side, get in taps.items()},
    )


def thousandfold(student, target):
    return 1000 * nn.functional.mse_loss(student, target)  # attention is small


def sides(tap):
    return {"student": tap, "target": tap}


# module, objective of a net, training data, options of TorchData, classes of the student
CASES = {
    "ignored labels": (LINEAR, cross_entropy(), (INPUTS, FEW), {"ignore_index": -100}, None),
    "another ignored label": (
        LINEAR,
        cross_entropy(ignore_index=7),
        (INPUTS, FEW.where(FEW >= 0, 7)),
        {"ignore_index": 7},
        None,
    ),
    "plain": (LINEAR, cross_entropy(), (INPUTS, LABELS), {}, None),
    "class weights": (LINEAR, cross_entropy(weight=VECTOR), (INPUTS, LABELS), {}, None),
    "smoothed": (LINEAR, cross_entropy(weight=VECTOR, label_smoothing=0.1), (INPUTS, LABELS), {}, None),
    "both": (LINEAR, cross_entropy(weight=VECTOR), (INPUTS, FEW), {"ignore_index": -100}, None),
    "sum": (LINEAR, cross_entropy(reduction="sum"), (INPUTS, LABELS), {}, None),
    "a function": (
        LINEAR,
        lambda net: Truth(partial(nn.functional.cross_entropy, weight=VECTOR)),
        (INPUTS, FEW),
        {"ignore_index": -100},
        None,
    ),
    "unknown labels": (LINEAR, lambda net: Truth(IgnoreUnknown()), (INPUTS, UNKNOWN), {"unknown": -1}, None),
    "weights": (
        LINEAR,
        lambda net: Truth(SampleWeighted(nn.CrossEntropyLoss(weight=VECTOR))),
        (INPUTS, LABELS, WEIGHTS),
        {},
        None,
    ),
    "weights of unknown": (
        LINEAR,
        lambda net: Truth(SampleWeighted(IgnoreUnknown())),
        (INPUTS, UNKNOWN, WEIGHTS),
        {"unknown": -1},
        None,
    ),
    "weights of a match": (
        LINEAR,
        matched(TEACHER, SampleWeighted(nn.MSELoss())),
        (INPUTS, UNKNOWN, WEIGHTS),
        {"unknown": -1},
        None,
    ),
    "a missing class": (nn.Linear(8, 2), cross_entropy(weight=VECTOR[:2]), (INPUTS, LABELS), {}, ("c", "a")),
    "tokens": (TAGGER, cross_entropy(), (TEXTS, TOKENS), {}, None),
    "matched tokens": (TAGGER, matched(TUTOR, SoftTargets()), (TEXTS, TOKENS), {}, None),
    "selected tokens": (
        TAGGER,
        matched(TUTOR, PerPosition(SoftTargets())),
        (TEXTS, TOKENS),
        {},
        None,
    ),
    "masked": (
        TAGGER,
        matched(TUTOR, Masked(nn.MSELoss()), **sides(lambda module: Tap(module.body))),
        Dicts(),
        {},
        None,
    ),
    "two masks": (
        TAGGER,
        matched(
            TUTOR,
            Masked(nn.MSELoss(), target_mask=lambda inputs: inputs["x"][:, 0] > 0),
            **sides(lambda module: Tap(module.body)),
        ),
        Dicts(),
        {},
        None,
    ),
    "masked pairs": (
        ATTENTIVE,
        matched(MODEL, Masked(thousandfold), **sides(lambda module: Tap(module.attention, element=1))),
        Dicts(),
        {},
        None,
    ),
    "two terms": (
        LINEAR,
        lambda net: cross_entropy()(net) + matched(TEACHER, SoftTargets())(net),
        (INPUTS, FEW),
        {"ignore_index": -100},
        None,
    ),
}


def make(case, *, wrap=lambda dataset: dataset, **training):
    module, objective, train, options, classes = CASES[case]
    net = Net("student", copy.deepcopy(module), classes=classes)
    dataset = train if isinstance(train, Dataset) else TensorDataset(*train)
    data = TorchData(wrap(dataset), dataset, classes=CLASSES, **options)
    training = {"epochs": 1, "keep": "last", "optimizer": Optimizer(SGD, lr=0.1), **training}
    return Recipe(data=data, schedule=[Stage({net: objective(net)}, Training(**training))])


def trained(case, **options):
    device = "cpu" if case == "a function" else "auto"  # the weights of this function are on the CPU
    result = kdkit.run(make(case, **options), device=device)
    return {name: value.cpu() for name, value in result.student.module.state_dict().items()}


def assert_equal(parts, whole, start):
    assert any(not torch.allclose(value, start[key], atol=1e-3) for key, value in whole.items())
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_every_entry_of_a_mean_counts_the_same(case):
    parts = trained(case, batch_size=3, accumulate_steps=4)
    assert_equal(parts, trained(case, batch_size=ROWS), CASES[case][0].state_dict())


@pytest.mark.parametrize("loaded", [False, True], ids=["dataset", "loader"])
@pytest.mark.parametrize(("size", "steps", "whole"), [(8, 2, 12), (5, 3, 12), (2, 4, 8)])
def test_updates_and_their_batches_may_differ_in_size(size, steps, whole, loaded):
    """With 12 rows: 8 + 4, 5 + 5 + 2, or 2 + 2 + 2 + 2 and then 2 + 2."""

    def weights(size, steps):
        wrap = (lambda dataset: DataLoader(dataset, size)) if loaded else (lambda dataset: dataset)
        return trained("plain", wrap=wrap, batch_size=size, accumulate_steps=steps, epochs=3)

    assert_equal(weights(size, steps), weights(whole, 1), LINEAR.state_dict())


def test_balancing_gets_terms_that_count_the_same():
    balancing = UncertaintyWeighting()
    parts = trained("two terms", batch_size=6, accumulate_steps=2, balancing=balancing)
    whole = trained("two terms", batch_size=ROWS, balancing=balancing)
    assert_equal(parts, whole, LINEAR.state_dict())


class Buckets:
    """Samples batches of different sizes."""

    def __iter__(self):
        yield from ([0, 1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11])

    def __len__(self):
        return 3


def drop_some(rows):
    return default_collate([row for row in rows if row[1] != 1 or row[0][0] < 0])


@pytest.mark.parametrize("case", ["class weights", "plain"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda dataset: DataLoader(dataset, batch_sampler=Buckets()),
        lambda dataset: DataLoader(dataset, batch_size=4, collate_fn=drop_some),
    ],
    ids=["a batch sampler", "a collate_fn that drops samples"],
)
def test_batches_of_other_sizes_than_planned_count_by_their_samples(wrap, case, monkeypatch):
    batches = [*wrap(TensorDataset(INPUTS, LABELS))]
    monkeypatch.setitem(CASES, "whole", (*CASES[case][:2], [*map(torch.cat, zip(*batches, strict=True))], {}, None))
    whole = trained("whole", batch_size=ROWS)
    parts = trained(case, wrap=wrap, batch_size=4, accumulate_steps=3)
    assert_equal(parts, whole, LINEAR.state_dict())


def test_a_run_resumes_within_an_epoch_to_the_same_bits(tmp_path):
    def recipe():
        return make("both", batch_size=2, accumulate_steps=2, epochs=3)

    kill_run(recipe, tmp_path / "run", KillAtStep(1, batch=5), checkpoint_every=1)
    assert list(tmp_path.glob("run/*/checkpoint-10.safetensors"))  # after two of three updates
    resumed = kdkit.run(recipe, out=tmp_path / "run", resume=True)
    assert_same_results(resumed, kdkit.run(recipe))


@pytest.mark.parametrize(("steps", "count"), [(1, 0), (2, 1)])
def test_a_loss_whose_labels_cannot_be_counted_has_a_notice(steps, count, monkeypatch):
    def labelled(student, labels):
        return nn.functional.cross_entropy(student, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)

    case = (LINEAR, lambda net: Truth(labelled), (INPUTS, FEW.flip(0)), {"ignore_index": -100}, None)
    monkeypatch.setitem(CASES, "own", case)
    recorder = Recorder()
    kdkit.run(make("own", batch_size=4, accumulate_steps=steps), callbacks=[recorder])
    notices = [notice for notice in recorder.notices if "labels that labelled averages over is unknown" in notice]
    assert len(notices) == count


# The weights and the means of terms of a run in one process, and of the same run in two of which one has most labels.
TWO_PROCESSES = """
import sys

import torch
from torch import distributed, nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Net, Optimizer, Recipe, Stage, TorchData, Training, Truth

number, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def weight_and_means(steps, size=8, **options):
    def recipe():
        inputs = torch.randn(19, 6, generator=torch.Generator().manual_seed(1))
        labels = torch.where(torch.arange(19) % 4 == 0, torch.arange(19) % 3, -100)
        samples = TensorDataset(inputs, labels)
        net = Net("student", nn.Linear(6, 3))
        loss = nn.CrossEntropyLoss(weight=torch.tensor([5.0, 1.0, 0.1]), **options)
        optimizer = Optimizer(torch.optim.SGD, lr=0.1)
        training = Training(epochs=2, batch_size=size, accumulate_steps=steps, optimizer=optimizer)
        data = TorchData(samples, samples, classes=("a", "b", "c"), ignore_index=-100)
        return Recipe(data=data, schedule=[Stage({net: Truth(loss)}, training)])

    result = kdkit.run(recipe, device="cpu", progress=False)
    return result.student.module.weight.detach(), [epoch["terms"]["truth"] for epoch in result.history["student"]]


def run_all():
    return [weight_and_means(1), weight_and_means(3), weight_and_means(1, reduction="sum")]


whole = [*run_all(), weight_and_means(1, size=19)]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
torch.save((whole, [*run_all(), weight_and_means(3)]), f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_labels_of_two_processes_count_the_same_in_updates_and_in_the_means_of_terms(tmp_path):
    in_two_processes(TWO_PROCESSES, tmp_path)
    for number in range(2):
        for (weight, means), parts in zip(*torch.load(tmp_path / f"{number}.pt"), strict=True):
            torch.testing.assert_close(parts[0], weight, rtol=0, atol=1e-10)
            assert parts[1] == pytest.approx(means, rel=1e-10)
