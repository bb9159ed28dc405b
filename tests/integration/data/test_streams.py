"""Streams, with a length and without, in a DataLoader and bare, and epochs that are a number of batches."""

import gc

import datasets
import pytest
import torch
import webdataset
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset, TensorDataset

import kdkit
from kdkit import DataError, LoaderSplit, Match, Net, Past, Recipe, Stage, TorchData, Training, Truth
from kdkit.data.batch import Batch
from kdkit.data.device_data import DeviceData
from kdkit.engine import predict
from kdkit.engine.stage.teacher_caching import TeacherCaching
from kdkit.engine.stage.training_batches import TrainingBatches
from kdkit.errors import CheckError
from kdkit.losses import SoftTargets
from tests.helpers.callbacks import KillAtStep, Recorder, kill_run
from tests.helpers.stages import assert_same_results

# WebDataset does not close a file of which it has read a part.
pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed file", "ignore:.*FileIO")

ROWS, CLASSES = 22, ("a", "b", "c")
INPUTS = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(ROWS) % 3
WHOLE = TensorDataset(INPUTS, LABELS)


class Stream(IterableDataset):
    """The samples in order, repeated `repeats` times or without end."""

    def __init__(self, repeats=1):
        self.repeats = repeats
        self.epochs = []

    def __iter__(self):
        passes = 0
        while passes != self.repeats:
            yield from zip(INPUTS, LABELS, strict=True)
            passes += 1

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class OnceOnly(Stream):
    """A stream over an iterator, which does not begin again."""

    def __init__(self):
        super().__init__()
        self.samples = iter(list(zip(INPUTS, LABELS, strict=True)) * 2)

    def __iter__(self):
        return self.samples


def student(dropout=0.0):
    torch.manual_seed(1)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
    return Net("student", nn.Sequential(*layers))


def recipe(train, validation=WHOLE, dropout=0.0, **training):
    training = {"epochs": 3, "batch_size": 4, **training}
    data = TorchData(train, validation, classes=CLASSES)
    return Recipe(data=data, schedule=[Stage({student(dropout): Truth(nn.CrossEntropyLoss())}, Training(**training))])


def batches_of(train, epochs=3, draws=None, **training):
    data = TorchData(train, WHOLE, classes=CLASSES, draws=draws)
    training = Training(**{"epochs": epochs, "batch_size": 4, **training})
    device_data = DeviceData(torch.device("cpu"), share=0.0, draws=None, passes=1)
    return TrainingBatches(data, device_data, training, seed=0)


def inputs_of(batches):
    return [batch.inputs for batch in batches]


def rows_of(batches):
    """Return the row of each sample, batch by batch."""
    return [[int((sample == INPUTS).all(1).nonzero()) for sample in batch.inputs] for batch in batches]


def consecutive(first, count, size=4):
    """Return rows in order, in batches; the passes over all rows follow each other, each with a smaller last batch."""
    one = [list(range(start, min(start + size, ROWS))) for start in range(0, ROWS, size)]
    endless = one * (first + count)
    return endless[first : first + count]


@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=4)])
def test_an_epoch_resumes_a_finite_stream_where_the_last_one_stopped_and_begins_again_at_its_end(wrap):
    stream = Stream()
    batches = batches_of(wrap(stream), steps_per_epoch=4)
    assert batches.per_epoch == 4
    read = [rows_of(batches.epoch(epoch)) for epoch in range(3)]
    assert [len(rows) for rows in read] == [4, 4, 4]
    assert [rows for epoch in read for rows in epoch] == consecutive(0, 12)  # 6 batches a pass
    assert stream.epochs == [0, 1]  # by pass: the third begins with the next batch


def test_a_shuffled_loader_is_read_in_whole_passes():
    batches = batches_of(DataLoader(WHOLE, batch_size=4, shuffle=True), steps_per_epoch=4)
    read = [rows for epoch in range(3) for rows in rows_of(batches.epoch(epoch))]
    for one in (read[:6], read[6:]):
        assert sorted(row for rows in one for row in rows) == list(range(ROWS))
    assert read[:6] != read[6:]


def test_an_endless_stream_trains_epochs_of_a_number_of_batches():
    result = kdkit.run(recipe(Stream(repeats=-1), steps_per_epoch=5))
    history = result.history["student"]
    assert len(history) == 3
    assert history[-1]["terms"]["truth"] < history[0]["terms"]["truth"]


def test_a_stream_of_one_pass_that_cannot_begin_again_is_refused_with_the_remedy():
    batches = batches_of(OnceOnly(), steps_per_epoch=40)
    with pytest.raises(
        DataError, match="yields no batch when it is read again from its start; its __iter__ must start"
    ):
        list(batches.epoch(0))


@pytest.mark.parametrize("name", ["training", "validation"])
def test_a_stream_that_was_read_to_its_end_is_named(name):
    stream = OnceOnly()
    made = recipe(stream, steps_per_epoch=1) if name == "training" else recipe(WHOLE, stream)
    list(stream)
    with pytest.raises(DataError, match=f"the {name} data yields no batch when it is read again from its start"):
        kdkit.run(made)


@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=4)])
def test_a_stream_without_a_length_is_a_problem_that_names_the_option(wrap):
    plan = kdkit.check(recipe(wrap(Stream())))
    message = "the training data (Stream) has no length; pass the number of batches per epoch: Training(steps_per_"
    assert any(message in problem for problem in plan.problems), plan.problems
    assert not kdkit.check(recipe(wrap(Stream()), steps_per_epoch=2)).problems


@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=5)])
def test_validation_and_test_streams_are_read_to_their_end(wrap):
    data = TorchData(WHOLE, wrap(Stream()), wrap(Stream(repeats=2)), classes=CLASSES)
    stage = Stage({student(): Truth(nn.CrossEntropyLoss())}, Training(epochs=2, batch_size=4))
    streamed = kdkit.run(Recipe(data=data, schedule=[stage]))
    twice = TensorDataset(INPUTS.repeat(2, 1), LABELS.repeat(2))
    data = TorchData(WHOLE, WHOLE, twice, classes=CLASSES)
    stage = Stage({student(): Truth(nn.CrossEntropyLoss())}, Training(epochs=2, batch_size=4))
    assert streamed.metrics == kdkit.run(Recipe(data=data, schedule=[stage])).metrics


@pytest.mark.parametrize(
    ("wrap", "read"), [(lambda stream: stream, 10), (lambda stream: DataLoader(stream, batch_size=3), 12)]
)
def test_an_endless_validation_stream_is_read_up_to_a_number_of_samples_and_a_loader_to_the_end_of_a_batch(wrap, read):
    data = TorchData(WHOLE, wrap(Stream(repeats=-1)), wrap(Stream(repeats=-1)), classes=CLASSES, evaluation_samples=10)
    expected = TorchData(WHOLE, *[Subset(WHOLE, range(read))] * 2, classes=CLASSES)
    assert data.summary.splitlines()[1] == "10 samples of the test data are read"
    assert data.fingerprint != TorchData(WHOLE, wrap(Stream()), wrap(Stream()), classes=CLASSES).fingerprint
    training = Training(epochs=2, batch_size=4)
    metrics = [
        kdkit.run(Recipe(data=part, schedule=[Stage({student(): Truth(nn.CrossEntropyLoss())}, training)])).metrics
        for part in (data, expected)
    ]
    assert metrics[0] == metrics[1]


def test_a_number_of_evaluation_samples_is_refused_if_it_is_none_or_has_no_stream():
    for value in (0, -1, 1.5, True, "3"):
        with pytest.raises(DataError, match="evaluation_samples must be a number of samples, at least 1; got"):
            TorchData(WHOLE, Stream(), classes=CLASSES, evaluation_samples=value)
    with pytest.raises(DataError, match=r"there is none; select a part of a Dataset with torch\.utils\.data\.Subset"):
        TorchData(WHOLE, WHOLE, classes=CLASSES, evaluation_samples=3)


def test_a_check_and_a_run_name_a_validation_stream_without_a_length(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text(ENDLESS)
    checked = kdkit_here("check", "mine.py")
    assert checked.code == 0, checked.err
    out = " ".join(checked.out.split())
    assert (
        "the validation data, a stream without a length, is read to its end; if it has no end, pass the number" in out
    )
    bounded = kdkit_here("run", "mine.py", "--samples", "8", "--device", "cpu", "--out", "run")
    assert bounded.code == 0, bounded.err
    assert "note: 8 samples of the validation data are read" in bounded.out


ENDLESS = """
import itertools

import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

import kdkit

ROWS = TensorDataset(torch.randn(16, 4), torch.arange(16) % 3)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(ROWS)


def recipe(samples: int = 0) -> kdkit.Recipe:
    data = kdkit.TorchData(ROWS, Endless(), classes=["a", "b", "c"], evaluation_samples=samples or None)
    objective = kdkit.Truth(nn.CrossEntropyLoss())
    stage = kdkit.Stage({kdkit.Net("student", nn.Linear(4, 3)): objective}, kdkit.Training(epochs=1))
    return kdkit.Recipe(data=data, schedule=[stage])
"""


def test_a_stream_that_does_not_end_is_reported_with_the_remedy_until_it_has_ended_once(monkeypatch):
    monkeypatch.setattr(predict, "_NOTICE_AFTER", 1e-9)
    data = TorchData(WHOLE, Stream(), classes=CLASSES)
    device_data = DeviceData(torch.device("cpu"), share=0.0, draws=None, passes=1)
    predictor = predict.Predictor(data, device_data)
    with pytest.warns(RuntimeWarning, match=r"the validation data, .*, is still being read after \d+ samples; if"):
        predictor.predict(student(), data.validation, batch_size=4)
    predictor.predict(student(), data.validation, batch_size=4)  # warnings are errors
    predictor.predict(student(), TorchData(WHOLE, WHOLE, classes=CLASSES).validation, batch_size=4)


def test_a_last_batch_of_one_sample_of_a_bare_stream_is_left_out():
    class Odd(Stream):
        def __iter__(self):
            return iter(list(super().__iter__())[:9])

        def __len__(self):
            return 9

    class Unsized(Stream):
        def __iter__(self):
            return iter(Odd())

    for stream in (Odd(), DataLoader(Odd(), batch_size=4, drop_last=True)):
        batches = batches_of(stream)
        assert [len(batch) for batch in batches.epoch(0)] == [4, 4]
        assert batches.per_epoch == 2
    for stream in (Odd(), Unsized()):
        assert [len(batch) for batch in batches_of(stream, steps_per_epoch=5).epoch(0)] == [4] * 5
    kdkit.run(recipe(Odd()))  # which has batch norm


def test_rows_in_epochs_of_a_number_of_batches_are_those_of_whole_passes():
    whole, parts = batches_of(WHOLE, epochs=4), batches_of(WHOLE, epochs=6, steps_per_epoch=4)
    expected = [inputs for epoch in range(4) for inputs in inputs_of(whole.epoch(epoch))]
    read = [inputs for epoch in range(6) for inputs in inputs_of(parts.epoch(epoch))]
    assert all(torch.equal(left, right) for left, right in zip(expected, read, strict=True))
    # Any epoch can be read again, as a resumed run does, and knows the sizes of its batches.
    assert all(torch.equal(a, b) for a, b in zip(read[12:16], inputs_of(parts.epoch(3)), strict=True))
    assert parts.sizes(1) == [len(inputs) for inputs in read[4:8]] == [4, 2, 4, 4]


def test_an_epoch_may_be_longer_than_a_pass():
    batches = list(batches_of(WHOLE, steps_per_epoch=14).epoch(0))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2] * 2 + [4, 4]
    assert sorted(id for batch in batches[:6] for id in batch.ids.tolist()) == list(range(ROWS))


def test_the_draw_of_a_sample_is_that_of_its_pass():
    class Drawn(kdkit.Split):
        ids = torch.arange(8)

        def batch(self, rows, draw):
            return Batch(INPUTS[rows], LABELS[rows], self.ids[rows], draw)

    data = TorchData(WHOLE, WHOLE, classes=CLASSES)
    drawn = kdkit.Data()
    drawn.train, drawn.draws, drawn.classes, drawn.task = Drawn(), 2, data.classes, data.task
    device_data = DeviceData(torch.device("cpu"), share=0.0, draws=2, passes=1)
    batches = TrainingBatches(drawn, device_data, Training(epochs=2, batch_size=4, steps_per_epoch=3), seed=0)
    assert [batch.draw for epoch in (0, 1) for batch in batches.epoch(epoch)] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("teacher_cache", ["off", "auto"])
def test_the_losses_of_epochs_of_a_number_of_batches_are_those_of_the_same_passes(teacher_cache):
    def losses(**training):
        torch.manual_seed(2)
        teacher = Net("teacher", nn.Linear(4, 3), trained=True)
        net = Net("student", nn.Linear(4, 3))
        objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets())
        stage = Stage({net: objective}, Training(batch_size=4, keep="last", **training))
        data = TorchData(WHOLE, WHOLE, classes=CLASSES)
        kdkit.run(Recipe(data=data, schedule=[stage]), teacher_cache=teacher_cache)
        return net.network.weight

    assert torch.equal(losses(epochs=4), losses(epochs=6, steps_per_epoch=4))


def test_teacher_outputs_of_many_short_epochs_are_not_cached_if_no_sample_is_seen_twice():
    teacher = Net("teacher", nn.Linear(4, 3), trained=True)
    short = Stage({student(): Match(teacher, SoftTargets())}, Training(epochs=3, batch_size=4, steps_per_epoch=2))
    caching = TeacherCaching(
        Recipe(data=TorchData(WHOLE, WHOLE, classes=CLASSES), schedule=[short]),
        kdkit.RunOptions(),
        torch.device("cpu"),
    )
    assert not caching._is_worthwhile(teacher, short)  # 3 epochs are one pass


def test_a_run_of_rows_in_short_epochs_resumes_to_the_same_bits(tmp_path):
    assert_resumes(tmp_path, lambda: recipe(WHOLE, epochs=5, steps_per_epoch=4, accumulate_steps=3))


def huggingface(rows=ROWS):
    features = datasets.Features(
        {"x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    columns = {"x": INPUTS[:rows].tolist(), "label": LABELS[:rows].tolist()}
    return datasets.Dataset.from_dict(columns, features=features).with_format("torch")


@pytest.mark.parametrize(
    "wrap",
    [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=4)],
    ids=["a bare stream", "in a DataLoader"],
)
def test_a_stream_that_knows_its_position_resumes_to_the_same_bits(wrap, tmp_path):
    def make():
        stream = wrap(huggingface().to_iterable_dataset(num_shards=2))
        return recipe(stream, huggingface(), dropout=0.5, epochs=5, steps_per_epoch=5)  # epochs end within a pass

    assert not assert_resumes(tmp_path, make)


class WithObject(Stream):
    """A stream whose state is an object, which a checkpoint does not hold."""

    def state_dict(self):
        return {"position": 1, "random": torch.Generator()}

    def load_state_dict(self, state):
        raise AssertionError


def test_a_shuffled_stream_of_huggingface_resumes_with_its_buffer_filled_again(tmp_path):
    def make():
        stream = huggingface().to_iterable_dataset(num_shards=3).shuffle(seed=0, buffer_size=5)
        return recipe(stream, huggingface(), epochs=5, steps_per_epoch=4)

    assert not assert_resumes(tmp_path, make, same=False)


@pytest.mark.parametrize("make", [Stream, WithObject, lambda: DataLoader(WHOLE, batch_size=4, shuffle=True)])
def test_another_stream_or_loader_begins_a_new_pass_after_a_resume_with_a_notice(make, tmp_path):
    notices = assert_resumes(tmp_path, lambda: recipe(make(), epochs=5, steps_per_epoch=4), same=False)
    assert any("cannot restore its position, so the resumed run begins a new pass" in notice for notice in notices)


def assert_resumes(folder, make, *, same=True):
    """Kill a run and resume it; compare it with an uninterrupted one, and return the notices of the resumed stage."""
    kill_run(make, folder / "run", KillAtStep(3))
    recorder = Recorder()
    resumed = kdkit.run(make, out=folder / "run", resume=True, callbacks=[recorder])
    assert len(resumed.history["student"]) == 5
    if same:
        assert_same_results(resumed, kdkit.run(make))
    return recorder.stages[0].notices


@pytest.mark.parametrize("split", ["map", "stream"])
def test_rows_of_a_huggingface_dataset_are_dicts_whose_label_column_is_found(split):
    dataset = huggingface()
    train = dataset if split == "map" else dataset.to_iterable_dataset(num_shards=2)
    data = TorchData(train, dataset)
    assert data.classes == CLASSES  # of its ClassLabel
    if split == "map":
        batch = data.train.batch(torch.tensor([5, 3, 5]), 0)
        assert torch.equal(batch.inputs, INPUTS[[5, 3, 5]])
        assert torch.equal(batch.labels, LABELS[[5, 3, 5]])
    steps = None if split == "map" else 6
    result = kdkit.run(recipe(train, dataset, steps_per_epoch=steps))
    assert result.history["student"][-1]["terms"]["truth"] < result.history["student"][0]["terms"]["truth"]


def test_streams_of_huggingface_get_the_number_of_each_pass():
    stream = huggingface().to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=4)
    batches = batches_of(stream, steps_per_epoch=6)
    first, second = (rows_of(batches.epoch(epoch)) for epoch in range(2))
    for rows in (first, second):
        assert sorted(row for batch in rows for row in batch) == list(range(ROWS))
    assert first != second
    assert stream.epoch == 1


def test_lists_of_numbers_in_rows_are_refused_with_the_format_to_set():
    message = r"a sample has a list of 4 numbers.*dataset.with_format\(\"torch\"\)"
    for data in (huggingface().with_format(None), huggingface().with_format(None).to_iterable_dataset()):
        for train in (data, DataLoader(data, batch_size=4)):
            with pytest.raises(DataError, match=message):
                TorchData(train, huggingface())


@pytest.fixture
def shards(tmp_path):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for row in range(shard * 11, shard * 11 + 11):
                tar.write({"__key__": f"{row:03d}", "x.npy": INPUTS[row].numpy(), "cls": int(LABELS[row])})
    yield [str(tmp_path / f"{shard}.tar") for shard in range(2)]
    gc.collect()  # files that WebDataset leaves open, before the warnings of other tests count


def read_shards(shards, **options):
    return webdataset.WebDataset(shards, shardshuffle=False, **options).decode()


@pytest.mark.parametrize("form", ["bare", "loader", "batched", "web loader"])
def test_a_webdataset_is_read_in_order_and_begins_again(shards, form):
    pairs = read_shards(shards).to_tuple("x.npy", "cls")
    train = {
        "bare": pairs,
        "loader": DataLoader(pairs, batch_size=4),
        "batched": DataLoader(pairs.batched(4), batch_size=None),
        "web loader": webdataset.WebLoader(pairs.batched(4), batch_size=None),
    }[form]
    batches = batches_of(train, steps_per_epoch=8)
    assert rows_of(batches.epoch(0)) == consecutive(0, 8)
    assert not kdkit.run(recipe(train, train, steps_per_epoch=8)).metrics["student"]["accuracy"].note


def test_samples_of_a_webdataset_are_mappings_whose_label_key_is_named(shards):
    data = TorchData(read_shards(shards), WHOLE, classes=CLASSES, labels="cls")
    (first, *_) = data.train.batched(4)
    assert torch.equal(first.inputs, INPUTS[:4])  # without __key__ and __url__
    training = Training(epochs=1, batch_size=4, steps_per_epoch=5)
    result = kdkit.distill(
        nn.Linear(4, 3), nn.Linear(4, 3), read_shards(shards), WHOLE, labels="cls", training=training
    )
    assert result.history["student"][0]["terms"]["truth"] > 0
    with pytest.raises(DataError, match=r"got a dict with .*'cls'.*: the key of its labels is not clear"):
        TorchData(read_shards(shards), WHOLE, classes=CLASSES)


def test_a_resampled_webdataset_never_ends(shards):
    train = read_shards(shards, resampled=True, seed=0).to_tuple("x.npy", "cls")
    assert len(kdkit.run(recipe(train, steps_per_epoch=9)).history["student"]) == 3


def test_samplers_and_datasets_get_the_number_of_each_epoch():
    sampler = DistributedSampler(WHOLE, num_replicas=2, rank=0)
    batches = batches_of(DataLoader(WHOLE, batch_size=4, sampler=sampler))
    read = [rows_of(batches.epoch(epoch)) for epoch in (0, 1, 0)]
    assert read[0] == read[2] != read[1]
    assert [len(rows) for rows in read[0]] == [4, 4, 3]  # half of the samples

    class Dataset(TensorDataset):
        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    dataset = Dataset(*WHOLE.tensors)
    dataset.epochs = []
    kdkit.run(recipe(torch.utils.data.Subset(dataset, range(9))))
    assert dataset.epochs == [0, 1, 2]
    kdkit.run(recipe(DataLoader(dataset, batch_size=4)))
    assert dataset.epochs == [0, 1, 2] * 2


def test_any_iterable_of_batches_is_a_loader():
    class Prefetched:
        """Such as the loaders of timm and NVIDIA DALI, which are no DataLoader."""

        def __iter__(self):
            return iter(DataLoader(WHOLE, batch_size=4))

        def __len__(self):
            return 6

    data = TorchData(Prefetched(), WHOLE, classes=CLASSES)
    assert isinstance(data.train, LoaderSplit)
    assert len(data.train) == 6
    assert len(kdkit.run(recipe(Prefetched())).history["student"]) == 3


def test_steps_per_epoch_is_a_number_of_at_least_one():
    with pytest.raises(kdkit.RecipeError, match="steps_per_epoch"):
        Training(epochs=1, steps_per_epoch=0)


def test_past_outputs_of_short_epochs_are_kept_until_a_sample_comes_again():
    net = student()
    stage = Stage(
        {net: 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(Past(net), SoftTargets())},
        Training(epochs=4, batch_size=4, steps_per_epoch=4),
    )
    history = kdkit.run(Recipe(data=TorchData(WHOLE, WHOLE, classes=CLASSES), schedule=[stage])).history["student"]
    losses = [epoch["terms"]["past of student/soft_targets"] for epoch in history]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[3] > 0


def test_the_error_of_batch_norm_for_a_batch_of_one_sample_names_the_remedy():
    train = DataLoader(Stream(), batch_size=7)  # 22 samples
    with pytest.raises(DataError, match=r"a training batch has a single sample, .*drop_last=True"):
        kdkit.run(recipe(train, steps_per_epoch=4))


def test_a_loader_that_ends_with_one_sample_is_refused_before_training_if_batch_norm_needs_two():
    train = DataLoader(WHOLE, batch_size=7, shuffle=True)
    with pytest.raises(CheckError, match=r"a step fails for a batch of a single sample: Expected more.*drop_last=True"):
        kdkit.run(recipe(train))
    kdkit.run(recipe(DataLoader(WHOLE, batch_size=7, drop_last=True)))
    net = Net("student", nn.Linear(4, 3))  # which has no batch norm
    stage = Stage({net: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))
    assert not kdkit.check(Recipe(data=TorchData(train, WHOLE, classes=CLASSES), schedule=[stage])).problems
