"""Frozen teachers run once per draw of a sample, and the student's weights are those of a run without a cache."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdkit
from kdkit import CacheSettings, MultiLevel, RecipeError, Split, TorchData
from kdkit.engine.storage.comparison import different_conditions
from kdkit.errors import CacheError, CheckError
from kdkit.teachers.cache import CacheFolder, Part, Store
from kdkit.utils.sealed import read_sealed_json
from tests.helpers.callbacks import KillAfterEpoch, KillAtStep, Recorder, kill_run
from tests.helpers.stages import copied, epoch_terms, same, samples, three, training
from tests.helpers.teacher_cache import ROWS, NoisyData, TeacherCalls, make_net, make_recipe

CPU = {"device": "cpu"}


@pytest.fixture
def teacher_calls(monkeypatch):
    return TeacherCalls(monkeypatch)


def run(recipe, **options):
    """Run a recipe, and return its student's weights, its history, and its notices."""
    recorder = Recorder()
    result = kdkit.run(recipe, callbacks=[recorder], **CPU, **options)
    notices = [notice for notice in recorder.notices if "test split" not in notice]
    return copied(result.student.module), epoch_terms(result.history), notices


@pytest.mark.parametrize("taps", [False, True], ids=["outputs", "outputs and features"])
def test_a_teacher_runs_in_the_first_epoch_only(taps, teacher_calls, tmp_path):
    first = run(make_recipe(taps=taps), out=tmp_path / "first")
    assert teacher_calls.samples() == ROWS
    second = run(make_recipe(taps=taps), out=tmp_path / "second")
    assert teacher_calls.samples() == 0
    assert same(first[0], second[0])
    assert first[1:] == second[1:]
    assert first[2] == []


def test_a_stage_records_its_entries_and_how_many_outputs_other_runs_had_cached(teacher_calls, tmp_path):
    kill_run(make_recipe(), tmp_path / "first", KillAtStep(1), **CPU)
    run(make_recipe(), out=tmp_path / "first", resume=True)  # whose outputs of its first epoch are its own
    run(make_recipe(), out=tmp_path / "second")
    run(make_recipe(), out=tmp_path / "third", teacher_cache="off")
    folders = [next((tmp_path / name).glob("*/stage.json")) for name in ("first", "second", "third")]
    first, second, third = (read_sealed_json(file).get("teacher_cache") for file in folders)
    (entry,) = CacheFolder(tmp_path / "teacher_cache").kept()
    assert first == {"teacher": {"entry": entry.path.name, "outputs": ROWS, "cached_before": 0}}
    assert second == {"teacher": {**first["teacher"], "cached_before": ROWS}}
    assert third is None
    assert different_conditions(tmp_path / "first", tmp_path / "second") == [
        f"cached teacher outputs of {folders[0].parent.name}: {first} and {second}"
    ]


def test_weights_are_those_of_a_run_without_a_cache_up_to_rounding(teacher_calls):
    cached, uncached = run(make_recipe(taps=True)), run(make_recipe(taps=True), teacher_cache="off")
    assert teacher_calls.samples() == ROWS * 4
    for key, value in cached[0].items():
        assert torch.allclose(value, uncached[0][key], rtol=1e-5, atol=1e-5), key


def test_with_k_draws_a_teacher_runs_in_k_epochs_only(teacher_calls):
    assert run(make_recipe(draws=2, epochs=6))[2] == []
    assert teacher_calls.samples() == 2 * ROWS


def test_stages_and_seeds_share_cached_outputs(teacher_calls, tmp_path):
    recipe = lambda: three(MultiLevel, training=training(epochs=3))  # noqa: E731  # read once
    kdkit.run(recipe, out=tmp_path / "a", **CPU)
    count = len(recipe().data.train)
    assert (
        teacher_calls.samples("teacher") == count
    )  # it runs in the assistant's stage, and the student's reads the cache
    kdkit.run(recipe, out=tmp_path / "b", **CPU)
    assert teacher_calls.samples("teacher") + teacher_calls.samples("assistant") == 0
    for seed in (1, 2):  # for students of other seeds
        kdkit.run(make_recipe(), out=tmp_path / f"seed{seed}", seed=seed, **CPU)
    assert teacher_calls.samples() == ROWS


def test_a_teacher_runs_on_the_missing_samples_only(teacher_calls, tmp_path):
    run(make_recipe(epochs=1), out=tmp_path / "first")
    entry = next(path for path in (tmp_path / "teacher_cache").iterdir() if path.is_dir())
    checksums = np.fromfile(entry / "checksums", "<u4")
    checksums[::2] = 0  # as if every second sample had never been computed
    checksums.tofile(entry / "checksums")
    teacher_calls.calls.clear()
    cached = run(make_recipe(epochs=3), out=tmp_path / "second")
    computed = sum(size for _, size in teacher_calls.calls) - 4 * 4 - 4  # except for dry runs, the probe and the audit
    assert 0 < computed <= ROWS // 2 + 8
    uncached = run(make_recipe(epochs=3), teacher_cache="off")
    assert torch.allclose(cached[0]["head.weight"], uncached[0]["head.weight"], atol=1e-5)


CHANGES = {
    "another weight": {"teacher": lambda: make_net(12, 9, "teacher", trained=True)},
    "other data": {"data": lambda: NoisyData(noise=0.6)},
    "fewer samples": {"data": lambda: NoisyData(rows=16)},
    "another draw": {"data": lambda: NoisyData(2)},
    "other classes": {"teacher": lambda: make_net(12, 1, "teacher", trained=True, classes=("a", "c", "b"))},
    "another dtype": {"teacher_cache": lambda: CacheSettings(dtype="fp16")},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_after_a_change_no_earlier_output_is_used(changes, teacher_calls, tmp_path):
    kdkit.run(make_recipe(), out=tmp_path / "first", **CPU)
    teacher_calls.calls.clear()
    changed = make_recipe(**{name: make() for name, make in changes.items()})
    kdkit.run(changed, out=tmp_path / "second", **CPU)
    assert teacher_calls.samples() == len(changed.data.train) * (changed.data.draws or 1)
    assert len(CacheFolder(tmp_path / "teacher_cache").kept()) == 2


class SignView:
    key = "the same"

    def __init__(self, sign):
        self.sign = sign

    def __call__(self, batch):
        return (batch.inputs * self.sign,), {}


def sign_function(sign):
    def change(batch):
        return (batch.inputs * sign,), {}

    return change


@pytest.mark.parametrize("make", [SignView, sign_function])
def test_after_a_change_of_the_view_no_earlier_output_is_used(make, teacher_calls, tmp_path):
    for count, sign in enumerate((1, -1, 1)):
        kdkit.run(
            make_recipe(teacher=make_net(12, 1, "teacher", trained=True, view=make(sign))),
            out=tmp_path / f"{count}",
            **CPU,
        )
        assert teacher_calls.samples() == (ROWS if count < 2 else 0)


@pytest.mark.parametrize(
    "teacher_cache", [CacheSettings(dtype="fp16"), CacheSettings(top=1), CacheSettings(dtype="fp16", top=2)]
)
def test_rounded_outputs_are_the_same_with_and_without_a_cache(teacher_cache, teacher_calls, tmp_path):
    first = run(make_recipe(teacher_cache=teacher_cache), out=tmp_path / "first")
    assert teacher_calls.samples() == ROWS
    second = run(make_recipe(teacher_cache=teacher_cache), out=tmp_path / "second")
    uncached = run(make_recipe(teacher_cache=teacher_cache, epochs=3), teacher_cache="off")
    exact = run(make_recipe())
    assert same(first[0], second[0])
    assert torch.allclose(first[0]["head.weight"], uncached[0]["head.weight"], atol=2e-3)
    assert not torch.equal(first[0]["head.weight"], exact[0]["head.weight"])


class BatchCentered(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(inputs - inputs.mean(0))


def hooked():
    teacher = make_net(12, 1, "teacher", trained=True)
    teacher.module.head.register_forward_hook(lambda *_: None)
    return teacher


REASONS = {
    "unknown draws": ({"draws": None}, "the number of draws of the data is unknown"),
    "as many draws as epochs": ({"draws": 3}, "in 3 epochs of 3 draws no output is needed twice"),
    "the batch matters": (
        {"teacher": lambda: kdkit.Net("teacher", BatchCentered(), trained=True)},
        "its output for a sample depends on the other samples in the batch",
    ),
    "a hook": ({"teacher": hooked}, "has a user-defined forward hook"),
}


@pytest.mark.parametrize(("changes", "reason"), REASONS.values(), ids=REASONS)
def test_a_teacher_that_is_not_cached_runs_at_every_step_and_a_notice_gives_the_reason(changes, reason, teacher_calls):
    recipe = make_recipe(**{name: value() if callable(value) else value for name, value in changes.items()})
    _, _, notices = run(recipe)
    assert teacher_calls.samples() == 3 * ROWS
    assert any("not cached: " in notice and reason in notice for notice in notices), notices


def test_with_a_loader_a_notice_gives_the_reason():
    stream = TorchData(DataLoader(samples(24), 8), samples(12, 1), samples(12, 1), classes=("a", "b", "c"))
    _, _, notices = run(make_recipe(data=stream))
    assert any("have no ids" in notice for notice in notices)
    assert run(make_recipe(), teacher_cache="off")[2] == []


def test_a_run_without_a_folder_leaves_no_files_and_one_with_a_folder_does(teacher_calls, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run(make_recipe())
    assert list((tmp_path / "temporary").iterdir()) == []
    run(make_recipe(draws=3), teacher_cache=tmp_path / "mine")  # for later runs: this one needs no output twice
    teacher_calls.calls.clear()
    run(make_recipe(draws=3), teacher_cache=tmp_path / "mine")
    assert teacher_calls.samples() == 0


def test_without_room_a_notice_gives_the_reason(teacher_calls, tmp_path):
    _, _, notices = run(make_recipe(), out=tmp_path / "run", teacher_cache_size=1e-8)
    assert "(--teacher-cache-size)" in notices[0]
    assert teacher_calls.samples() == 3 * ROWS


class FixedDataset(Dataset):
    """Samples that always stay the same; kdkit cannot see all of them."""

    def __init__(self, count):
        self.inputs, self.labels = samples(count).tensors

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.inputs[row], self.labels[row]


def data_without_digest():
    return TorchData(FixedDataset(ROWS), FixedDataset(12), FixedDataset(12), classes=("a", "b", "c"), draws=1)


def test_outputs_for_data_without_a_digest_are_cached_for_one_run(teacher_calls, tmp_path):
    for name in ("first", "second"):
        _, _, notices = run(make_recipe(data=data_without_digest()), out=tmp_path / name)
        assert teacher_calls.samples() == ROWS
        assert "teacher outputs are cached for this run only" in notices[0]
        assert not (tmp_path / name / "teacher_cache").exists()


class NoisyDataset(FixedDataset):
    """Samples with noise, as a random augmentation has."""

    def __getitem__(self, row):
        return self.inputs[row] + 0.1 * torch.randn_like(self.inputs[row]), self.labels[row]


@pytest.mark.parametrize("workers", [0, 1])
def test_draws_of_augmented_samples_are_shared_by_runs_if_the_data_has_a_digest(workers, teacher_calls, tmp_path):
    def recipe():
        # A loader of validation data changes nothing.
        validation = DataLoader(FixedDataset(12), 4)
        data = TorchData(NoisyDataset(ROWS), validation, FixedDataset(12), classes=("a", "b", "c"), draws=2)
        data.train_digest = "with noise"
        return make_recipe(data=data, training={"workers": workers})

    first = run(recipe(), out=tmp_path / "first")
    assert teacher_calls.samples() == 2 * ROWS
    second = run(recipe(), out=tmp_path / "second")
    assert teacher_calls.samples() == 0
    assert same(first[0], second[0])


class OwnGenerator(FixedDataset):
    """Samples with the noise of a generator that nobody seeds, and without it."""

    def __getitem__(self, row):
        noise = torch.tensor(np.random.default_rng().normal(size=6)).float()
        return {"changed": self.inputs[row] + noise, "original": self.inputs[row]}, self.labels[row]


@pytest.mark.parametrize(("key", "calls"), [("changed", 3 * ROWS), ("original", 2 * ROWS)])
def test_only_teachers_that_see_the_change_of_a_sample_are_not_cached(key, calls, teacher_calls):
    def recipe():
        view = kdkit.Inputs(only=(key,))
        data = TorchData(OwnGenerator(ROWS), OwnGenerator(12), classes=("a", "b", "c"), draws=2)
        return make_recipe(data=data, teacher=make_net(12, 1, "teacher", trained=True, view=view), student_view=view)

    (estimate,) = kdkit.check(recipe(), estimate=kdkit.RunOptions(device="cpu")).estimates
    assert estimate.caching["teacher"].is_cached == (key == "original")
    teacher_calls.calls.clear()
    _, _, notices = run(recipe())
    assert teacher_calls.samples() == calls
    reason = "net 'teacher' is not cached: its outputs for a sample differ, because the sample changes"
    assert any(reason in notice for notice in notices) == (key == "changed")


def test_a_teacher_that_shares_a_module_with_the_student_is_not_cached(teacher_calls):
    teacher, student = make_net(4, 1, "teacher", trained=True), make_net(4, 2, "student")
    teacher.module.head.requires_grad_(False)
    student.module.head = teacher.module.head
    objective = kdkit.Match(teacher, kdkit.losses.SoftTargets())
    recipe = kdkit.Recipe(data=NoisyData(), schedule=[kdkit.Stage({student: objective}, training(epochs=3))])
    _, _, notices = run(recipe)
    assert "it shares a Linear with a trained network or loss" in notices[0]
    assert teacher_calls.samples() == 3 * ROWS


def change_cached_outputs(folder: Path) -> None:
    """Write other outputs with their checksums, as if the teacher had computed them."""
    for path in folder.glob("*/output"):
        values = torch.from_numpy(np.fromfile(path, np.float32)).view(ROWS, 3)
        store = Store(path.parent, [Part("output", (3,), torch.float32)], ROWS, 1)
        store.write(0, torch.arange(ROWS), [values + 0.01])
        store.close()


def test_the_audit_stops_a_run_whose_cached_outputs_are_not_the_teachers(tmp_path):
    kdkit.run(make_recipe(), out=tmp_path / "first", **CPU)
    change_cached_outputs(tmp_path / "teacher_cache")
    with pytest.raises(
        CacheError, match=r"output of net 'teacher' is not what it computes now.*version=.*--delete [0-9a-f]{12}\)"
    ):
        kdkit.run(make_recipe(), out=tmp_path / "second", **CPU)
    kdkit.run(make_recipe(), out=tmp_path / "third", teacher_cache="off", **CPU)
    kdkit.run(make_recipe(teacher_cache=CacheSettings(audit=0)), out=tmp_path / "fourth", **CPU)


def test_the_audit_stops_a_run_whose_teacher_changes_meanwhile():
    teacher = make_net(12, 1, "teacher", trained=True)

    class ChangeTeacher:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            with torch.no_grad():
                teacher.module.head.bias += 0.1

    with pytest.raises(CacheError, match=r"differs by .* of the largest value"):
        kdkit.run(
            make_recipe(teacher=teacher, teacher_cache=CacheSettings(audit=0.5)), callbacks=[ChangeTeacher()], **CPU
        )


class ReadsFile(nn.Module):
    """Scales by a number in a file, which no key can show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.head, self.path = nn.Linear(6, 3), path

    def forward(self, inputs):
        return self.head(inputs) * float(self.path.read_text())


def reads_file(path):
    torch.manual_seed(1)
    return kdkit.Net("teacher", ReadsFile(path), trained=True)


def test_the_audit_stops_a_run_whose_teacher_reads_a_file_that_changed(tmp_path):
    scale = tmp_path / "scale.txt"
    scale.write_text("1.0")
    kdkit.run(make_recipe(teacher=reads_file(scale)), out=tmp_path / "first", **CPU)
    kdkit.run(make_recipe(teacher=reads_file(scale)), out=tmp_path / "second", **CPU)
    scale.write_text("1.1")
    with pytest.raises(CacheError, match="changed in a way that the key does not cover"):
        kdkit.run(make_recipe(teacher=reads_file(scale)), out=tmp_path / "third", **CPU)


def test_the_audit_stops_a_run_with_a_patched_library(tmp_path, monkeypatch):
    kdkit.run(make_recipe(), out=tmp_path / "first", **CPU)
    original = nn.BatchNorm1d.forward
    monkeypatch.setattr(nn.BatchNorm1d, "forward", lambda self, inputs: original(self, inputs) + 0.5)
    with pytest.raises(CacheError, match="changed in a way that the key does not cover"):
        kdkit.run(make_recipe(), out=tmp_path / "second", **CPU)


def test_the_audit_runs_the_teacher_on_its_share_of_the_samples(teacher_calls):
    run(make_recipe(epochs=101, teacher_cache=CacheSettings(audit=0.02)))
    assert sum(size for _, size in teacher_calls.calls if size == 4) == pytest.approx(
        ROWS * 100 * 0.02, abs=4 + 4 * 4 + 8
    )


def test_the_audit_does_not_change_the_weights():
    assert same(
        run(make_recipe(teacher_cache=CacheSettings(audit=1.0)))[0],
        run(make_recipe(teacher_cache=CacheSettings(audit=0)))[0],
    )


def test_a_full_disk_ends_the_caching_and_not_the_run(teacher_calls, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdkit.teachers.cache.store.Store.write", full)
    with pytest.warns(UserWarning, match="net 'teacher' is no longer cached: .*No space left"):
        first = run(make_recipe())
    assert teacher_calls.samples() == 3 * ROWS + 8  # the first batch twice
    assert same(first[0], run(make_recipe(), teacher_cache="off")[0])


def test_a_teacher_runs_on_batches_without_draws(teacher_calls):
    class WithoutDraws(NoisyData):
        @property
        def train(self):
            return self._train

        @train.setter
        def train(self, split):
            original = split.batch
            split.batch = lambda rows, draw: kdkit.Batch(
                *(getattr(original(rows, draw), name) for name in ("inputs", "labels")), ids=split.ids[rows]
            )
            self._train = split

    _, _, notices = run(make_recipe(data=WithoutDraws()))
    assert "its batches have no ids or no draw number" in notices[0]
    assert teacher_calls.samples() == 3 * ROWS


def test_top_is_for_multiclass_data_only():
    class MultilabelData(NoisyData):
        task = "multilabel"

    recipe = make_recipe(data=MultilabelData(), teacher_cache=CacheSettings(top=1), metrics=(kdkit.metrics.MacroF1(),))
    assert any("CacheSettings(top=1) keeps the largest outputs" in problem for problem in kdkit.check(recipe).problems)
    with pytest.raises(RecipeError, match=r"teacher_cache must be CacheSettings\(.*got 'fp16'"):
        make_recipe(teacher_cache="fp16")
    with pytest.raises(CheckError, match=r"CacheSettings\(top=1\) keeps the largest outputs"):
        kdkit.run(
            make_recipe(data=MultilabelData(), teacher_cache=CacheSettings(top=1), metrics=(kdkit.metrics.MacroF1(),)),
            **CPU,
        )


def test_a_run_with_other_cache_settings_is_not_resumed(tmp_path):
    kdkit.run(make_recipe(epochs=1), out=tmp_path / "run", **CPU)
    with pytest.raises(kdkit.errors.RunFolderError, match="differs in its teacher cache"):
        kdkit.run(make_recipe(epochs=1, teacher_cache=CacheSettings(top=1)), out=tmp_path / "run", resume=True, **CPU)
    kdkit.run(make_recipe(epochs=1, teacher_cache=CacheSettings(audit=0.5)), out=tmp_path / "run", resume=True, **CPU)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_outputs_in_half_precision_are_cached(precision, teacher_calls, tmp_path):
    first = run(make_recipe(), out=tmp_path / "first", precision=precision)
    assert teacher_calls.samples() == ROWS
    second = run(make_recipe(), out=tmp_path / "second", precision=precision)
    assert teacher_calls.samples() == 0
    assert same(first[0], second[0])


def test_batches_from_worker_processes_hit_in_the_cache(teacher_calls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about forks in a process with threads
        run(make_recipe(training={"workers": 1}))
    assert teacher_calls.samples() == ROWS


def test_a_run_continues_if_its_cache_folder_is_deleted(teacher_calls, tmp_path):
    class DeleteFolder:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            shutil.rmtree(tmp_path / "teacher_cache", ignore_errors=True)

    kdkit.run(make_recipe(), out=tmp_path / "run", callbacks=[DeleteFolder()], **CPU)
    assert teacher_calls.samples() == ROWS
    run(make_recipe(), out=tmp_path / "again")
    assert teacher_calls.samples() == ROWS


def test_a_run_with_data_without_a_digest_resumes_to_the_same_bits(tmp_path):
    kill_run(make_recipe(data=data_without_digest()), tmp_path / "cut", KillAfterEpoch(1), **CPU)
    assert (tmp_path / "cut" / "teacher_cache").exists()
    cut = run(make_recipe(data=data_without_digest()), out=tmp_path / "cut", resume=True)
    assert same(cut[0], run(make_recipe(data=data_without_digest()), out=tmp_path / "whole")[0])
    assert not (tmp_path / "cut" / "teacher_cache").exists()


def test_the_members_of_teachers_are_cached_and_past_is_not(teacher_calls):
    teachers = [make_net(12, seed, name, trained=True) for seed, name in ((1, "teacher"), (3, "second"))]
    student = make_net(4, 2, "student")
    from_all = kdkit.Match(
        kdkit.Teachers(*teachers), kdkit.losses.PerTeacher(kdkit.losses.SoftTargets(), weights="confidence")
    )
    past = 0.1 * kdkit.Match(kdkit.Past(student), kdkit.losses.PSKD())
    stage = kdkit.Stage({student: from_all + past}, training(epochs=3))
    first = run(kdkit.Recipe(data=NoisyData(), schedule=[stage]))
    assert first[2] == []
    assert teacher_calls.samples("teacher") == ROWS
    teacher_calls.calls.clear()


def test_a_teacher_that_is_trained_further_runs_again(teacher_calls, tmp_path):
    teacher, student = make_net(12, 1, "teacher", trained=True), make_net(4, 2, "student")
    match = kdkit.Match(teacher, kdkit.losses.SoftTargets())
    stages = [
        kdkit.Stage({student: match}, training(epochs=2), name="before"),
        kdkit.Stage({teacher: kdkit.Truth(nn.CrossEntropyLoss())}, training(epochs=1)),
        kdkit.Stage({student: match}, training(epochs=2), name="after"),
    ]
    kdkit.run(kdkit.Recipe(data=NoisyData(), schedule=[*stages]), out=tmp_path / "run", **CPU)
    assert teacher_calls.samples() == 2 * ROWS
    assert len(CacheFolder(tmp_path / "teacher_cache").kept()) == 2


def test_ids_of_another_dtype_or_layout_hit(teacher_calls):
    class OtherIds(NoisyData):
        def __init__(self):
            super().__init__()
            split, original = self.train, self.train.batch
            split.batch = lambda rows, draw: replace(
                original(rows, draw), ids=split.ids.int()[rows].repeat(2, 1).T[:, 0]
            )

    assert run(make_recipe(data=OtherIds()))[2] == []
    assert teacher_calls.samples() == ROWS


def test_data_without_ids_is_a_reason_and_no_error(teacher_calls):
    data = NoisyData()
    split = data.train
    members = {"__len__": lambda self: ROWS, "batch": lambda self, *args: split.batch(*args)}
    data.train = type("WithoutIds", (Split,), members)()
    _, _, notices = run(make_recipe(data=data))
    assert "the data cannot be identified (DataError" in notices[0]
    assert teacher_calls.samples() == 3 * ROWS
