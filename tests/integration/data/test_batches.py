"""Batches of every form: samplers, padded texts, changes of whole batches such as mixup, and weights of samples."""

import json
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import tv_tensors
from torchvision.transforms import v2

import kdkit
from kdkit import DataError, Distiller, Match, Net, Past, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.data.device_data import DeviceData
from kdkit.data.order import sampled, training_order
from kdkit.engine.stage.training_batches import TrainingBatches
from kdkit.errors import CheckError, KdkitError, RunFolderError
from kdkit.losses import CRD, DKD, IgnoreUnknown, SampleWeighted, SoftTargets
from kdkit.utils import collectives
from kdkit.utils.seeds import SeedPurpose, derive_seed
from tests.helpers.callbacks import KillAtStep, Recorder, killed_and_resumed
from tests.helpers.stages import assert_same_results
from tests.helpers.teacher_cache import TeacherCalls
from tests.helpers.tiny import Mlp

CLASSES = ("a", "b", "c")
DEVICE_DATA = DeviceData(torch.device("cpu"), share=0, draws=1, passes=1)
IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
IMAGE_DATA = TensorDataset(IMAGES, LABELS)


def image_net(name, **options):
    torch.manual_seed(3)
    return Net(name, nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3)), **options)


def image_recipe(train=IMAGE_DATA, objective=None, *, training=None, **options):
    teacher, student = image_net("teacher", trained=True), image_net("student")
    if objective is None:
        objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets())
    data = TorchData(train, IMAGE_DATA, classes=CLASSES, **options)
    stage = Stage({student: objective}, Training(**{"epochs": 2, "batch_size": 8, **(training or {})}))
    return Recipe(data=data, schedule=[stage])


# Samplers


def labels_of(data):
    return torch.cat([batch.labels for batch in data.train])


def test_a_weighted_sampler_changes_the_balance_of_classes():
    rare = torch.tensor([0.0, 1.0, 9.0])[LABELS]
    torch.manual_seed(0)
    sampler = WeightedRandomSampler(rare, num_samples=300)
    data = TorchData(DataLoader(IMAGE_DATA, batch_size=16, sampler=sampler), IMAGE_DATA, classes=CLASSES)
    counts = labels_of(data).bincount(minlength=3)
    assert counts[0] == 0
    assert counts[2] > 5 * counts[1] > 0
    assert len(kdkit.run(image_recipe(DataLoader(IMAGE_DATA, batch_size=16, sampler=sampler))).history["student"]) == 2


def test_a_sampler_of_batches_decides_the_batches():
    class ByClass:
        """Batches of one class."""

        def __iter__(self):
            return iter([(label == LABELS).nonzero().flatten().tolist() for label in (2, 0)])

        def __len__(self):
            return 2

    loader = DataLoader(IMAGE_DATA, batch_sampler=ByClass())
    data = TorchData(loader, IMAGE_DATA, classes=CLASSES)
    assert [batch.labels.unique().tolist() for batch in data.train] == [[2], [0]]
    assert kdkit.run(image_recipe(loader)).history["student"][0]["terms"]["truth"] > 0
    usual = DataLoader(IMAGE_DATA, batch_sampler=BatchSampler(RandomSampler(IMAGE_DATA), 7, drop_last=False))
    assert [len(batch) for batch in TorchData(usual, IMAGE_DATA, classes=CLASSES).train] == [7, 7, 7, 3]
    kdkit.run(image_recipe(usual, training={"accumulate_steps": 2}))


RARE = torch.tensor([0.0, 1.0, 9.0])[LABELS]  # no sample of the first class


class Recorded(WeightedRandomSampler):
    """A sampler that keeps the rows that it draws, and the numbers of the epochs."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.drawn, self.epochs = [], []

    def __iter__(self):
        self.drawn.append(list(super().__iter__()))
        return iter(self.drawn[-1])

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.parametrize("options", [{}, {"generator": torch.Generator()}], ids=["global", "generator"])
def test_a_sampler_of_the_data_draws_the_rows_of_each_epoch_by_the_seed(options):
    sampler = Recorded(RARE, 41, **options)
    recipe = image_recipe(sampler=sampler, training={"epochs": 3})

    def drawn(seed):
        batches = TrainingBatches(recipe.data, DEVICE_DATA, recipe.stages[0].training, seed)
        sampler.drawn.clear()
        sizes = [[len(batch) for batch in batches.epoch(epoch)] for epoch in range(3)]
        assert sizes == [[8] * 5] * 3  # a last batch of one sample is left out
        assert batches.sizes(0) == sizes[0]
        return sampler.drawn.copy()

    first = drawn(0)
    assert len({tuple(rows) for rows in first}) == 3
    assert not {row for rows in first for row in rows} & {row for row in range(24) if LABELS[row] == 0}
    assert drawn(0) == first
    assert drawn(1) != first
    assert sampler.epochs == [0, 1, 2] * 3
    assert len(kdkit.run(recipe).history["student"]) == 3


def test_outputs_of_teachers_are_cached_by_sample_with_a_sampler(monkeypatch):
    calls = TeacherCalls(monkeypatch)

    def train(**options):
        recipe = image_recipe(sampler=WeightedRandomSampler(RARE, 48), training={"epochs": 4})
        calls.calls.clear()
        result = kdkit.run(recipe, measure=False, **options)
        return [epoch["terms"] for epoch in result.history["student"]], sum(size for _, size in calls.calls)

    cached, samples = train()
    uncached, all_samples = train(teacher_cache="off")
    assert cached == uncached
    assert all_samples >= 4 * 48
    assert samples < all_samples / 3


def test_a_run_with_a_sampler_and_a_memory_of_samples_resumes_within_an_epoch(tmp_path):
    def make():
        objective = Truth(nn.CrossEntropyLoss()) + Match(image_net("teacher", trained=True), CRD())
        return image_recipe(objective=objective, sampler=WeightedRandomSampler(RARE, 40))

    whole = kdkit.run(make)
    assert_same_results(killed_and_resumed(make, tmp_path, KillAtStep(1, 3), checkpoint_every=2), whole)


def test_batches_that_a_sampler_draws_may_have_samples_of_like_lengths():
    sampler = WeightedRandomSampler(RARE, 480)
    data = TorchData(IMAGE_DATA, IMAGE_DATA, classes=CLASSES, sampler=sampler, lengths=torch.arange(24))
    order = training_order(data.train, 8, seed=0, epoch=0)
    assert order.sort().values.equal(sampled(sampler, 24, derive_seed(0, 0, SeedPurpose.ORDER)).sort().values)
    assert all(max(rows) - min(rows) < 4 for rows in order.split(8))


def test_a_run_does_not_resume_with_other_weights_of_its_sampler(tmp_path):
    kdkit.run(image_recipe(sampler=WeightedRandomSampler(RARE, 24)), out=tmp_path / "run")
    kdkit.run(image_recipe(sampler=WeightedRandomSampler(RARE, 24)), out=tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="differs in its sampler: expected 'WeightedRandomSampler of 24 rows"):
        kdkit.run(image_recipe(sampler=WeightedRandomSampler(RARE + 1, 24)), out=tmp_path / "run", resume=True)


class Growing:
    """A sampler that draws more rows in each epoch."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(range(len(self)))

    def __len__(self):
        return 8 + 8 * self.epoch


def test_a_sampler_that_draws_more_rows_in_the_next_epoch_is_refused():
    with pytest.raises(DataError, match=r"as many rows in each epoch, but its length was 8 and is now 16; .* DataLo"):
        kdkit.run(image_recipe(sampler=Growing(), training={"epochs": 2}))


class Endless:
    """A sampler without a length, such as one that a subclass must define."""

    def __iter__(self):
        return iter(range(24))

    def __len__(self):
        raise NotImplementedError


class Shorter(Endless):
    """A sampler that draws fewer rows than its length, such as one that leaves some out."""

    def __len__(self):
        return 32


class Stateful:
    """A sampler whose order depends on how often it was read."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.generator.permutation(24))

    def __len__(self):
        return 24


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (RARE.tolist(), r"24 rows, its length, from 0 to 23, such as .*got 24 values, such as \[0.0, 1.0, 9.0"),
        (
            WeightedRandomSampler(torch.ones(30), 400),
            r"must draw 400 rows, .* from 0 to 23, .*such as \[2[4-9], 2[4-9],",
        ),
        (BatchSampler(range(24), 4, drop_last=False), "got 6 values, .*; pass a sampler of rows, not of batches"),
        ([], "must draw 0 rows"),
        (iter(range(24)), "sampler must be a sampler with a length"),
        (Endless(), "sampler must be a sampler with a length"),
        (Shorter(), r"must draw 32 rows, its length, from 0 to 23, .*; got 24 values"),
        (WeightedRandomSampler, "the class WeightedRandomSampler; did you forget its"),
        (DistributedSampler(IMAGE_DATA, 2, 0), "which kdkit divides; got a DistributedSampler"),
        (
            Stateful(),
            "Stateful draws other rows with the same seed, so a run could not be .* resumed; let it draw from",
        ),
    ],
)
def test_samplers_that_are_refused_name_the_remedy(sampler, message):
    with pytest.raises(DataError, match=message):
        image_recipe(sampler=sampler)


@pytest.mark.parametrize("sampler", [Stateful(), iter(range(24)), [99] * 24])
def test_a_sampler_that_is_set_on_a_split_is_checked(sampler):
    recipe = image_recipe()
    recipe.data.train.sampler = sampler
    assert any("sampler must" in problem or "Stateful draws" in problem for problem in kdkit.check(recipe).problems)


def test_a_sampler_that_is_set_on_the_split_of_a_data_loader_is_refused():
    recipe = image_recipe(DataLoader(IMAGE_DATA, batch_size=8))
    recipe.data.train.sampler = RandomSampler(IMAGE_DATA)
    assert any("pass it to the DataLoader" in problem for problem in kdkit.check(recipe).problems)


def test_a_run_resumes_with_the_sampler_object_that_has_counted_its_epochs(tmp_path):
    class ByEpoch:
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(row + self.epoch) % 24 for row in range(24)])

        def __len__(self):
            return 24

    sampler = ByEpoch()
    kdkit.run(image_recipe(sampler=sampler), out=tmp_path / "run")
    assert sampler.epoch == 1
    kdkit.run(image_recipe(sampler=sampler), out=tmp_path / "run", resume=True)


def test_a_data_loader_and_distill_take_no_sampler_of_other_data():
    sampler = RandomSampler(IMAGE_DATA)
    with pytest.raises(DataError, match=r"sampler is for a training Dataset, .* pass it to the DataLoader"):
        image_recipe(DataLoader(IMAGE_DATA, batch_size=8), sampler=sampler)
    with pytest.raises(DataError, match="sampler must draw 24 rows, its length, from 0 to 11"):
        kdkit.distill(Reader(), Reader(), Texts(), Texts(), collate_fn=padded("dict"), sampler=sampler)


# Texts and signals of different lengths


def test_samples_of_different_sizes_are_trained_and_cached_in_batches_of_one(tmp_path):
    class Sizes(Dataset):
        """Images, each of another width."""

        def __len__(self):
            return 6

        def __getitem__(self, row):
            return IMAGES[row, :, :, : row + 3], LABELS[row]

    def net(name):
        return Net(name, nn.Sequential(nn.AdaptiveAvgPool2d(8), *image_net(name).module), trained=name == "teacher")

    def entries(run):
        data = TorchData(Sizes(), Sizes(), classes=CLASSES, draws=1)
        data.train_digest = "of six widths"
        stage = Stage({net("student"): Match(net("teacher"), SoftTargets())}, Training(epochs=2, batch_size=1))
        kdkit.run(Recipe(data=data, schedule=[stage]), out=tmp_path / run, teacher_cache=tmp_path, measure=False)
        return json.loads((tmp_path / run / "1-student" / "stage.json").read_text())["teacher_cache"]["teacher"]

    assert [entries(run)["cached_before"] for run in ("first", "second")] == [0, 6]
    sizes = Sizes()
    test = [(sizes[row][0] / (0 if row in (2, 3) else 1), sizes[row][1]) for row in range(6)]
    data = TorchData(Sizes(), Sizes(), test, classes=CLASSES)
    stage = Stage({net("student"): Truth(nn.CrossEntropyLoss())}, Training(epochs=1, batch_size=1))
    with pytest.raises(KdkitError, match="for 2 of 6 samples; the inputs of row 2 of the test data"):
        kdkit.run(Recipe(data=data, schedule=[stage]), measure=False)


class Texts(Dataset):
    """Token ids of different lengths."""

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return torch.arange(1, 3 + row % 4), row % 3


@dataclass
class Encoded:
    input_ids: torch.Tensor
    attention_mask: torch.Tensor


Pair = namedtuple("Pair", "input_ids attention_mask")
FORMS = {
    "dict": dict,
    "BatchEncoding": lambda **columns: transformers.BatchEncoding(columns),
    "dataclass": Encoded,
    "namedtuple": Pair,
}


def padded(form, length=None):
    def collate(pairs):
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in pairs], batch_first=True)
        if length is not None:
            ids = F.pad(ids, (0, length - ids.shape[1]))
        return FORMS[form](input_ids=ids, attention_mask=(ids > 0).long()), torch.tensor([label for _, label in pairs])

    return collate


class Reader(nn.Module):
    """The mean over the tokens that are no padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask=None):
        if isinstance(input_ids, Encoded):
            input_ids, attention_mask = input_ids.input_ids, input_ids.attention_mask
        mask = attention_mask.unsqueeze(-1)
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("form", FORMS)
def test_padded_texts_are_trained_on_and_predicted_in_any_form(form):
    def train(form, length=None):
        loader = DataLoader(Texts(), batch_size=4, collate_fn=padded(form, length))
        torch.manual_seed(0)
        teacher, student = Net("teacher", Reader(), trained=True), Net("student", Reader())
        objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets())
        recorder = Recorder()
        recipe = Recipe(
            data=TorchData(loader, loader, classes=CLASSES), schedule=[Stage({student: objective}, Training(epochs=2))]
        )
        return kdkit.run(recipe, callbacks=[recorder]), recorder.notices

    result, lines = train(form)
    expected, _ = train("dict", length=9)  # more padding, which the mask hides
    for name in ("truth", "teacher/soft_targets"):
        values = [[epoch["terms"][name] for epoch in run.history["student"]] for run in (result, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert result.metrics["student"]["accuracy"].value == expected.metrics["student"]["accuracy"].value
    assert any("teacher outputs are not cached: the data comes from a loader" in line for line in lines)


def test_samples_that_are_padded_already_are_cached_by_sample(tmp_path):
    class Padded(Texts):
        def __getitem__(self, row):
            ids, label = super().__getitem__(row)
            ids = F.pad(ids, (0, 9 - len(ids)))
            return Encoded(ids, (ids > 0).long()), label

    def losses(teacher_cache):
        torch.manual_seed(0)
        teacher, student = Net("teacher", Reader(), trained=True), Net("student", Reader())
        data = TorchData(Padded(), Padded(), classes=CLASSES, draws=1)
        stage = Stage({student: Match(teacher, SoftTargets())}, Training(epochs=5, batch_size=4))
        recorder = Recorder()
        recipe = Recipe(data=data, schedule=[stage])
        result = kdkit.run(recipe, out=tmp_path / teacher_cache, teacher_cache=teacher_cache, callbacks=[recorder])
        assert not any("not cached" in line for line in recorder.notices)
        return [epoch["terms"] for epoch in result.history["student"]]

    assert losses("auto") == losses("off")


def test_outputs_for_texts_that_a_collate_fn_pads_are_cached_by_sample(monkeypatch):
    calls = TeacherCalls(monkeypatch, batch_size=6)  # not that of dry runs

    def train(data):
        torch.manual_seed(0)
        teacher, student = Net("teacher", Reader(), trained=True), Net("student", Reader())
        stage = Stage({student: Match(teacher, SoftTargets())}, Training(epochs=3, batch_size=6))
        result = kdkit.run(Recipe(data=data, schedule=[stage]))
        return [epoch["terms"]["teacher/soft_targets"] for epoch in result.history["student"]], calls.samples()

    collate = padded("dict")
    cached, samples = train(TorchData(Texts(), Texts(), classes=CLASSES, collate_fn=collate, draws=1))
    assert samples == len(Texts())
    uncached, samples = train(TorchData(Texts(), Texts(), classes=CLASSES, collate_fn=collate))
    assert samples == 3 * len(Texts())
    assert cached == pytest.approx(uncached, rel=1e-4)


def test_features_are_not_cached_if_only_a_few_texts_need_padding():
    class FewShort(Texts):
        def __getitem__(self, row):
            return torch.arange(1, 4 if row in (8, 9) else 6), row % 3

    shapes = set()

    def error(student, target):
        shapes.add(student.shape == target.shape)
        return (student.mean() - target.mean()).square()

    teacher, student = Net("teacher", Reader(), trained=True), Net("student", Reader())
    taps = {"student": Tap(student.module.embed), "target": Tap(teacher.module.embed)}
    recorder = Recorder()
    data = TorchData(FewShort(), FewShort(), classes=CLASSES, collate_fn=padded("dict"), draws=1)
    stage = Stage({student: Match(teacher, error, **taps)}, Training(epochs=20, batch_size=2))
    kdkit.run(Recipe(data=data, schedule=[stage]), callbacks=[recorder], measure=False, seed=1)
    assert shapes == {True}
    assert any("not cached: the shape of its outputs depends on the padding" in line for line in recorder.notices)


def test_a_run_whose_batches_have_texts_of_like_lengths_resumes_within_an_epoch(tmp_path):
    texts = [(torch.arange(1, 3 + row % 7), row % 3) for row in range(50)]

    def make():
        torch.manual_seed(0)
        student, lengths = Net("student", Reader()), [len(ids) for ids, _ in texts]
        data = TorchData(texts, Texts(), classes=CLASSES, collate_fn=padded("dict"), lengths=lengths)
        stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=2, batch_size=3))
        return Recipe(data=data, schedule=[stage])

    whole = kdkit.run(make)
    assert_same_results(killed_and_resumed(make, tmp_path, KillAtStep(1, 4), checkpoint_every=3), whole)


def test_distill_takes_lengths():
    with pytest.raises(DataError, match="lengths must be a finite number for each of the 12 training samples"):
        kdkit.distill(Reader(), Reader(), Texts(), Texts(), collate_fn=padded("dict"), lengths=[1])


def test_texts_collated_by_transformers_have_their_labels_under_a_key():
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"))}
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary)
    rows = [{**tokenizer(" ".join("ab"[: 1 + row % 2] * (1 + row))), "labels": row % 3} for row in range(12)]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    loader = DataLoader(rows, batch_size=4, collate_fn=collate)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    torch.manual_seed(0)
    nets = [transformers.BertForSequenceClassification(config) for _ in range(2)]
    teacher, student = Net("teacher", nets[0], element="logits", trained=True), Net("s", nets[1], element="logits")
    result = kdkit.distill(teacher, student, loader, loader, epochs=2)
    assert 0 <= result.metrics["s"]["accuracy"].value <= 1
    first = next(iter(TorchData(loader, loader, classes=CLASSES).train))
    assert isinstance(first.inputs, transformers.BatchEncoding)
    assert "labels" not in first.inputs


class OfMapping(nn.Module):
    """A network whose only argument is a mapping, to which it adds its outputs, as those of sentence-transformers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, features, **options):
        features["embedding"] = self.layer(features["first"] + features["second"])
        return features


class WholeMapping:
    key = "the whole mapping"

    def __call__(self, batch):
        return (dict(batch.inputs),), {}


def test_a_network_of_a_mapping_gets_it_by_a_view_as_the_error_without_one_says():
    rows = [{"first": torch.randn(4), "second": torch.randn(4), "label": row % 3} for row in range(8)]
    with pytest.raises(DataError, match=r"or give it the whole mapping: view=lambda batch: \(\(dict\(batch.inputs"):
        kdkit.distill(OfMapping(), OfMapping(), rows, rows)
    options = {"view": WholeMapping(), "element": "embedding"}
    nets = [Net("teacher", OfMapping(), trained=True, **options), Net("student", OfMapping(), **options)]
    result = kdkit.distill(*nets, rows, rows, epochs=1, progress=False)
    inputs = {name: torch.stack([row[name] for row in rows]) for name in ("first", "second")}
    is_right = nets[1].module(inputs)["embedding"].argmax(1) == torch.arange(8) % 3
    assert result.metrics["student"]["accuracy"].value == is_right.double().mean()


def test_a_column_that_the_network_does_not_take_is_named():
    rows = [{"input": image, "label": label, "path": f"{row}.png"} for row, (image, label) in enumerate(IMAGE_DATA)]
    with pytest.raises(
        DataError, match=r"net 'student' fails .* 'path'; select the inputs .*view=Inputs\(only=\('input',\)"
    ):
        kdkit.distill(image_net("teacher", trained=True), image_net("student"), rows, rows)


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, batch_size=4)])
def test_arrays_and_lists_of_different_lengths_name_the_remedy(wrap):
    class Signals(Dataset):
        def __init__(self, make):
            self.make = make

        def __len__(self):
            return 8

        def __getitem__(self, row):
            return self.make(row), row % 3

    arrays = Signals(lambda row: torch.zeros(2 + row).numpy())
    tuples = Signals(lambda row: tuple(range(2 + row)))
    for data, words in ((arrays, "different shapes"), (tuples, "different lengths")):
        with pytest.raises(DataError, match=f"samples of the train data have {words}.*collate_fn=") as error:
            kdkit.run(image_recipe(wrap(data)))
        assert "Subset" not in str(error.value)


# Changes of whole batches

MIXES = {
    "torchvision's MixUp": lambda: v2.MixUp(num_classes=3),
    "torchvision's CutMix": lambda: v2.CutMix(num_classes=3),
    "timm's Mixup": lambda: Mixup(num_classes=3, cutmix_alpha=1.0),
}


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, batch_size=8)])
@pytest.mark.parametrize("name", MIXES)
def test_mixed_batches_are_the_same_for_teacher_and_student_and_validation_has_indices(name, wrap):
    recipe = image_recipe(wrap(IMAGE_DATA), batch_transform=MIXES[name]())
    teacher, student = recipe.stages[0].teachers, list(recipe.stages[0].objectives)
    seen = {"teacher": [], "student": []}
    for net in (*teacher, *student):
        net.module.register_forward_pre_hook(
            lambda module, args, name=net.name: seen[name].append(args[0].cpu().clone()) if len(args[0]) == 8 else None
        )
    recorder = Recorder()
    kdkit.run(recipe, callbacks=[recorder])
    assert len(seen["student"]) >= 6  # of two epochs, and validation
    # The teacher saw each training batch right before the student, mixed alike.
    matched = [
        any(torch.equal(inputs, batch) for batch in seen["student"])
        and not any((inputs[0] == image).all() for image in IMAGES)
        for inputs in seen["teacher"]
    ]
    assert sum(matched) >= 4
    assert torch.equal(IMAGES, IMAGE_DATA.tensors[0])
    if wrap(IMAGE_DATA) is IMAGE_DATA:
        assert any("not cached: batch_transform changes every batch as a whole" in line for line in recorder.notices)


def test_the_teacher_cache_is_used_without_a_batch_transform_and_not_with_one(tmp_path):
    kdkit.run(image_recipe(), teacher_cache=tmp_path / "plain")
    assert list((tmp_path / "plain").iterdir())
    kdkit.run(image_recipe(batch_transform=v2.MixUp(num_classes=3)), teacher_cache=tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_the_loss_of_mixed_labels_is_that_of_soft_labels_computed_by_hand():
    def swap(inputs, labels):
        return 0.75 * inputs + 0.25 * inputs.flip(0), 0.75 * F.one_hot(labels, 3) + 0.25 * F.one_hot(labels.flip(0), 3)

    few = TensorDataset(IMAGES[:4], LABELS[:4])
    student = image_net("student")
    inputs, labels = swap(IMAGES[:4], LABELS[:4])
    expected = F.cross_entropy(student.network(inputs), labels).item()
    data = TorchData(DataLoader(few, batch_size=4), few, classes=CLASSES, batch_transform=swap)
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))
    history = kdkit.run(Recipe(data=data, schedule=[stage])).history["student"]
    assert history[0]["terms"]["truth"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MIXES)
def test_a_run_with_mixed_batches_resumes_to_the_same_bits(name, tmp_path):
    def make():
        return image_recipe(batch_transform=MIXES[name](), training={"epochs": 4})

    resumed = killed_and_resumed(make, tmp_path / "run", KillAtStep(2))
    assert_same_results(resumed, kdkit.run(make))


def test_a_transform_that_changes_its_inputs_in_place_leaves_the_data_as_it_is():
    batch = (IMAGES.clone(), LABELS)

    class Whole(Dataset):
        """One batch, which is a tensor of the dataset itself."""

        def __len__(self):
            return 1

        def __getitem__(self, row):
            return batch

    def halve(inputs, labels):
        return inputs.mul_(0.5), labels

    kdkit.run(image_recipe(DataLoader(Whole(), batch_size=None), batch_transform=halve))
    assert torch.equal(batch[0], IMAGES)


def test_a_transform_that_changes_labels_in_place_leaves_the_data_as_it_is():
    labels = LABELS.clone()

    class Whole(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, row):
            return IMAGES, labels

    kdkit.run(image_recipe(DataLoader(Whole(), batch_size=None), batch_transform=lambda x, y: (x, y.fill_(1))))
    assert torch.equal(labels, LABELS)


def test_a_transform_may_mask_the_labels_of_tokens():
    seen = []

    def mask(inputs, labels):
        masked = labels.clone()
        masked[:, 0] = -100
        seen.append(masked.dtype)
        return inputs, masked

    tokens = torch.randint(0, 20, (24, 6), generator=torch.Generator().manual_seed(0))
    texts = TensorDataset(tokens, tokens % 3)

    def tagger():
        return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3))

    options = {"classes": CLASSES, "epochs": 1, "batch_transform": mask}
    result = kdkit.distill(tagger(), tagger(), texts, texts, **options)
    assert set(seen) == {torch.int64}
    # Validation data is not transformed, so its first tokens count too.
    is_right = result.student.module(tokens).argmax(-1) == tokens % 3
    assert result.metrics["student"]["accuracy"].value == pytest.approx(is_right.double().mean().item())


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            Mixup(num_classes=3),
            r"batch_transform fails for a batch of 3 samples: AssertionError: Batch size .*drop_last",
        ),
        (v2.MixUp(num_classes=7), r"labels of shape \(4, 7\), but there are 3 classes; .* num_classes=3"),
        (v2.MixUp(), r"batch_transform fails for a batch of 4 samples: ValueError: num_classes must be passed"),
        (lambda inputs, labels: inputs, r"batch_transform must return \(inputs, labels\), but returned a Tensor"),
    ],
)
def test_a_transform_that_does_not_fit_is_a_problem_before_training(transform, message):
    train = TensorDataset(IMAGES[:11], LABELS[:11])
    with pytest.raises(CheckError, match=message):
        kdkit.run(image_recipe(train, batch_transform=transform))


def test_videos_are_mixed_if_they_have_the_type_of_videos():
    videos = TensorDataset(torch.rand(12, 3, 2, 4, 4), LABELS[:12])
    mix = v2.MixUp(num_classes=3)
    student = Net("student", nn.Sequential(nn.Flatten(), nn.Linear(96, 3)))

    def problems(transform):
        data = TorchData(videos, videos, batch_transform=transform)
        return kdkit.check(
            Recipe(data=data, schedule=[Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))])
        ).problems

    (problem,) = problems(mix)
    assert problem.endswith(
        "videos need tv_tensors.Video of torchvision: lambda videos, labels: mix(Video(videos), labels)"
    )
    assert problems(lambda inputs, labels: mix(tv_tensors.Video(inputs), labels)) == ()


def test_images_of_bytes_that_cannot_be_mixed_are_refused_with_the_transform_to_add():
    train = TensorDataset(torch.zeros(12, *IMAGES.shape[1:], dtype=torch.uint8), LABELS[:12])
    recipe = image_recipe(train, batch_transform=Mixup(cutmix_alpha=0.0, num_classes=3))
    (problem,) = kdkit.check(recipe).problems
    assert "cannot be mixed: add v2.ToDtype(torch.float32, scale=True) to their transforms" in problem


def test_the_check_tries_the_parts_of_batches_that_several_processes_have(monkeypatch):
    recipe = image_recipe(TensorDataset(IMAGES[:14], LABELS[:14]), batch_transform=Mixup(num_classes=3))
    assert not kdkit.check(recipe).problems  # batches of 8 and 6
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    (problem,) = kdkit.check(recipe).problems
    assert "batch_transform fails for a batch of 3 samples: AssertionError: Batch size" in problem


def test_losses_that_need_one_class_per_sample_are_refused_for_mixed_labels():
    teacher = image_net("teacher", trained=True)
    recipe = image_recipe(objective=Match(teacher, DKD()), batch_transform=v2.MixUp(num_classes=3))
    (problem,) = kdkit.check(recipe).problems
    assert "DKD needs one class per sample, but the labels are soft" in problem
    assert "no batch_transform that mixes samples" in problem


@pytest.mark.parametrize(
    "make", [lambda teacher, student: Match(teacher, CRD()), lambda teacher, student: Past(student)]
)
def test_losses_and_teachers_that_look_samples_up_are_refused_for_mixed_samples(make):
    teacher, student = image_net("teacher", trained=True), image_net("student")
    term = make(teacher, student)
    objective = term if isinstance(term, Match) else Truth(nn.CrossEntropyLoss()) + Match(term, SoftTargets())
    data = TorchData(IMAGE_DATA, IMAGE_DATA, classes=CLASSES, batch_transform=v2.MixUp(num_classes=3))
    plan = kdkit.check(Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=1))]))
    assert any("sample ids" in problem and "batch_transform" in problem for problem in plan.problems), plan.problems


def test_a_batch_transform_is_a_function():
    with pytest.raises(DataError, match="batch_transform must be a function of inputs and labels; got 'mixup'"):
        TorchData(IMAGE_DATA, IMAGE_DATA, batch_transform="mixup")


def test_distill_takes_a_batch_transform_and_the_fingerprint_of_the_data_changes():
    student, teacher = image_net("student"), image_net("teacher", trained=True)
    result = kdkit.distill(teacher, student, IMAGE_DATA, IMAGE_DATA, batch_transform=v2.MixUp(num_classes=3), epochs=1)
    assert result.history["student"][0]["terms"]["truth"] > 0
    mixed, plain = (TorchData(IMAGE_DATA, IMAGE_DATA, batch_transform=mix) for mix in (v2.MixUp(num_classes=3), None))
    assert mixed.fingerprint != plain.fingerprint


def test_a_data_set_of_user_code_has_a_batch_transform_too():
    recipe = image_recipe()
    recipe.data.batch_transform = lambda inputs, labels: (inputs * 0, labels)
    student = next(iter(recipe.stages[0].objectives))
    before = student.network[1].weight.clone()
    kdkit.run(recipe)
    assert torch.equal(student.network[1].weight.cpu(), before)  # inputs of 0 have no gradient for the first layer


# Weights of samples

WEIGHTS = torch.rand(24, generator=torch.Generator().manual_seed(1))


def weighted_data(weights=WEIGHTS, inputs=IMAGES, labels=LABELS, wrap=lambda data: data):
    return wrap(TensorDataset(inputs, labels, weights))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: DataLoader(data, batch_size=24),
        lambda data: data,
        lambda data: [(inputs, label, float(weight)) for inputs, label, weight in data],
        lambda data: [{"x": inputs, "y": label, "w": weight} for inputs, label, weight in data],
    ],
    ids=["loader", "tensors", "list", "mappings"],
)
def test_the_loss_is_the_weighted_mean_over_samples(wrap):
    train = wrap(weighted_data())
    student = image_net("student")
    losses = F.cross_entropy(student.network(IMAGES), LABELS, reduction="none")
    expected = ((WEIGHTS * losses).sum() / WEIGHTS.sum()).item()
    data = TorchData(train, IMAGE_DATA, classes=CLASSES, weights="w")
    stage = Stage({student: Truth(SampleWeighted(nn.CrossEntropyLoss()))}, Training(epochs=1, batch_size=24))
    history = kdkit.run(Recipe(data=data, schedule=[stage])).history["student"]
    assert history[0]["terms"]["truth"] == pytest.approx(expected, rel=1e-5)


def test_distill_weighs_samples_that_have_weights():
    student, teacher = image_net("student"), image_net("teacher", trained=True)
    losses = F.cross_entropy(student.network(IMAGES), LABELS, reduction="none")
    expected = ((WEIGHTS * losses).sum() / WEIGHTS.sum()).item()
    training = Training(epochs=1, batch_size=24)
    result = kdkit.distill(teacher, student, weighted_data(), IMAGE_DATA, training=training)
    assert result.history["student"][0]["terms"]["truth"] == pytest.approx(expected, rel=1e-5)


def test_a_distiller_weighs_samples():
    student = image_net("student")
    objective = Truth(SampleWeighted(nn.CrossEntropyLoss()))
    losses = F.cross_entropy(student.network(IMAGES), LABELS, reduction="none")
    with Distiller(student, objective, (IMAGES[:4], LABELS[:4], WEIGHTS[:4])) as distiller:
        loss = distiller(IMAGES, LABELS, sample_weights=WEIGHTS).loss
        torch.testing.assert_close(loss, (WEIGHTS * losses).sum() / WEIGHTS.sum())
        with pytest.raises(kdkit.RecipeError, match="needs the weights of the samples, and a batch has none"):
            distiller(IMAGES, LABELS)
    with pytest.raises(CheckError, match="it needs sample weights, but this data has none"):
        Distiller(student, objective, (IMAGES[:4], LABELS[:4]))


def test_a_loss_on_labels_that_does_not_use_the_weights_of_the_data_is_refused():
    plan = kdkit.check(image_recipe(weighted_data(), Truth(nn.CrossEntropyLoss())))
    assert any("CrossEntropyLoss does not use them; wrap it: kdkit.losses.SampleWeighted" in p for p in plan.problems)
    plan = kdkit.check(image_recipe(IMAGE_DATA, Truth(SampleWeighted(nn.CrossEntropyLoss()))))
    assert any("it needs sample weights, but this data has none" in problem for problem in plan.problems)
    teacher = image_net("teacher", trained=True)
    assert not kdkit.check(image_recipe(weighted_data(), Match(teacher, SoftTargets()))).problems


def test_the_first_samples_may_have_no_weight():
    weights = torch.ones(24)
    weights[:8] = 0
    result = kdkit.run(image_recipe(TensorDataset(IMAGES, LABELS, weights), Truth(SampleWeighted())))
    assert result.history["student"][0]["terms"]["truth"] > 0


def test_a_loss_of_user_code_gets_the_weights_by_the_name_of_its_argument():
    def loss(student, labels, sample_weights):
        return (F.cross_entropy(student, labels, reduction="none") * sample_weights).mean()

    assert kdkit.run(image_recipe(weighted_data(), Truth(loss))).history["student"][0]["terms"]["truth"] > 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            torch.ones(24, dtype=torch.int64),
            r"additional weights that are int64 of shape \(1,\); expected the weight .* leave out indices and names",
        ),
        (torch.ones(24, 2), r"got additional weights that are float32 of shape \(1, 2\)"),
        (
            -torch.ones(24),
            r"additional weights with -1.0; expected the weight of each sample, a float of at least 0",
        ),
        (torch.full((24,), torch.nan), "got additional weights with nan"),
    ],
)
def test_a_third_element_that_is_no_weight_is_refused(weights, message):
    with pytest.raises(DataError, match=message):
        TorchData(weighted_data(weights), IMAGE_DATA)


def test_weights_and_mixed_batches_exclude_each_other():
    with pytest.raises(DataError, match="batch_transform may mix samples, but not their weights"):
        TorchData(weighted_data(), IMAGE_DATA, batch_transform=v2.MixUp(num_classes=3))


def test_weights_follow_their_samples_if_classes_are_aligned():
    student = Net("student", Mlp(outputs=2, features=192), classes=("c", "a"))
    inputs = IMAGES.flatten(1)
    data = TorchData(
        DataLoader(TensorDataset(inputs, LABELS, WEIGHTS), batch_size=24),
        TensorDataset(inputs, LABELS),
        classes=CLASSES,
    )
    rows = LABELS != 1
    student.network.train()
    outputs = student.network(inputs)[rows]
    losses = F.cross_entropy(outputs, (LABELS[rows] == 0).long(), reduction="none")
    expected = ((WEIGHTS[rows] * losses).sum() / WEIGHTS[rows].sum()).item()
    stage = Stage({student: Truth(SampleWeighted(nn.CrossEntropyLoss()))}, Training(epochs=1))
    history = kdkit.run(Recipe(data=data, schedule=[stage])).history["student"]
    assert history[0]["terms"]["truth"] == pytest.approx(expected, rel=1e-5)


def test_unknown_labels_and_weights_go_together():
    labels = F.one_hot(LABELS, 3).float()
    labels[::4, 1] = -1
    student, teacher = image_net("student"), image_net("teacher", trained=True)
    known = labels != -1
    losses = F.binary_cross_entropy_with_logits(student.network(IMAGES), labels.clamp(min=0), reduction="none")
    expected = (WEIGHTS[:, None] * losses * known).sum() / (WEIGHTS[:, None] * known).sum()
    result = kdkit.distill(
        *(teacher, student, TensorDataset(IMAGES, labels, WEIGHTS), TensorDataset(IMAGES, labels)),
        unknown=-1,
        training=Training(epochs=1, batch_size=24),
    )
    assert result.history["student"][0]["terms"]["truth"] == pytest.approx(expected.item(), rel=1e-5)
    assert SampleWeighted(IgnoreUnknown()).accepts_unknown


# Weights of classes


def class_losses():
    weight, pos_weight = torch.tensor([1.0, 5.0, 0.5]), torch.tensor([3.0, 1.0, 0.2])
    return {
        "multiclass": (nn.CrossEntropyLoss(weight=weight), LABELS),
        "multilabel": (nn.BCEWithLogitsLoss(pos_weight=pos_weight), F.one_hot(LABELS, 3).float()),
    }


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights of samples too"])
def test_class_weights_reach_the_loss_in_a_run_and_in_a_distiller(task, weighted):
    loss, labels = class_losses()[task]
    student = image_net("student")
    outputs = student.network(IMAGES).detach()
    if task == "multiclass":
        losses = -outputs.log_softmax(1)[torch.arange(24), labels]
        shares = loss.weight[labels]
        expected = (shares * losses).sum() / shares.sum()
    else:
        p = outputs.sigmoid()
        expected = -(loss.pos_weight * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    data = TensorDataset(IMAGES, labels, *([torch.full((24,), 0.3)] if weighted else []))
    truth = Truth(SampleWeighted(loss) if weighted else loss)
    recipe = Recipe(
        data=TorchData(data, TensorDataset(IMAGES, labels), classes=CLASSES),
        schedule=[Stage({student: truth}, Training(epochs=1, batch_size=24))],
    )
    history = kdkit.run(recipe).history["student"]
    assert history[0]["terms"]["truth"] == pytest.approx(expected.item(), rel=1e-5)
    net = image_net("student")
    with Distiller(net, truth, tuple(tensor[:4] for tensor in data.tensors), task=task) as distiller:
        weights = {"sample_weights": data.tensors[2]} if weighted else {}
        assert distiller(IMAGES, labels, **weights).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        moved = distiller.to("meta")
        buffers = [buffer for _, buffer in moved.module.losses.named_buffers()]
        assert [buffer.device.type for buffer in buffers] == ["meta"]
