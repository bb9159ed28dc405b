"""Teachers are asked once about each draw of a sample, and nobody who learns from them can tell."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdkit
from kdkit import CacheSettings, MultiLevel, RecipeError, TorchData
from kdkit.errors import CacheError, CheckError
from kdkit.teachers.cache import CacheFolder
from tests.helpers.stages import copied, epoch_terms, same, samples, three, training
from tests.helpers.teacher_cache import ROWS, Asked, Drawn, net, taught

CPU = {"device": "cpu"}


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


class Listener:
    """Keeps every notice of a run."""

    def __init__(self):
        self.notices: list[str] = []

    @kdkit.hookimpl
    def run_started(self, event):
        self.notices += event.notices

    @kdkit.hookimpl
    def stage_started(self, event):
        self.notices += event.notices


def run(recipe, **options):
    """Run a recipe, and return its student's weights, its history, and what was noted."""
    listener = Listener()
    result = kdkit.run(recipe, callbacks=[listener], **CPU, **options)
    notices = [notice for notice in listener.notices if "test split" not in notice]
    return copied(result.student.module), epoch_terms(result.history), notices


@pytest.mark.parametrize("taps", [False, True], ids=["outputs", "outputs and features"])
def test_a_teacher_is_asked_in_the_first_epoch_alone(taps, asked, tmp_path):
    first = run(taught(taps=taps), out=tmp_path / "first")
    assert asked.samples() == ROWS
    second = run(taught(taps=taps), out=tmp_path / "second")
    assert asked.samples() == 0
    assert same(first[0], second[0])
    assert first[1:] == second[1:]
    assert first[2] == []


def test_figures_are_those_of_asking_at_every_step_up_to_rounding(asked):
    recorded, asked_each = run(taught(taps=True)), run(taught(taps=True), teacher_cache="off")
    assert asked.samples() == ROWS * 4
    for key, value in recorded[0].items():
        assert torch.allclose(value, asked_each[0][key], rtol=1e-5, atol=1e-5), key


def test_with_k_draws_a_teacher_is_asked_for_k_epochs_and_no_more(asked):
    assert run(taught(draws=2, epochs=6))[2] == []
    assert asked.samples() == 2 * ROWS


def test_stages_and_seeds_share_what_one_teacher_said(asked, tmp_path):
    recipe = lambda: three(MultiLevel, training=training(epochs=3))  # noqa: E731  # read once
    kdkit.run(recipe, out=tmp_path / "a", **CPU)
    count = len(recipe().data.train)
    assert asked.samples("teacher") == count  # the assistant's stage asks, and the student's reads
    kdkit.run(recipe, out=tmp_path / "b", **CPU)
    assert asked.samples("teacher") + asked.samples("assistant") == 0
    for seed in (1, 2):  # of one trained teacher, for students of other seeds
        kdkit.run(taught(), out=tmp_path / f"seed{seed}", seed=seed, **CPU)
    assert asked.samples() == ROWS


def test_only_what_is_missing_is_asked_for(asked, tmp_path):
    run(taught(epochs=1), out=tmp_path / "first")
    folder = next(each for each in (tmp_path / "teacher_cache").iterdir() if each.is_dir())
    known = bytearray((folder / "known").read_bytes())
    known[::2] = bytes(len(known[::2]))  # as if every second one had never been asked for
    (folder / "known").write_bytes(known)
    asked.calls.clear()
    exact = run(taught(epochs=3), out=tmp_path / "second")
    told_of = sum(size for _, size in asked.calls) - 4 * 4 - 4  # but for rehearsals, the trial and the audit
    assert 0 < told_of <= ROWS // 2 + 8
    whole = run(taught(epochs=3), teacher_cache="off")
    assert torch.allclose(exact[0]["head.weight"], whole[0]["head.weight"], atol=1e-5)


OTHERS = {
    "another weight": {"teacher": lambda: net(12, 9, "teacher", trained=True)},
    "other data": {"data": lambda: Drawn(noise=0.6)},
    "fewer samples": {"data": lambda: Drawn(rows=16)},
    "another draw": {"data": lambda: Drawn(2)},
    "other classes": {"teacher": lambda: net(12, 1, "teacher", trained=True, classes=("a", "c", "b"))},
    "another form": {"teacher_cache": lambda: CacheSettings(dtype="fp16")},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_what_is_another_never_meets_an_old_answer(changes, asked, tmp_path):
    kdkit.run(taught(), out=tmp_path / "first", **CPU)
    asked.calls.clear()
    other = taught(**{name: make() for name, make in changes.items()})
    kdkit.run(other, out=tmp_path / "second", **CPU)
    assert asked.samples() == len(other.data.train) * (other.data.draws or 1)
    assert len(CacheFolder(tmp_path / "teacher_cache").kept()) == 2


def test_a_view_of_other_code_never_meets_an_old_answer(asked, tmp_path):
    class View:
        key = "the same"

        def __init__(self, sign):
            self.sign = sign

        def __call__(self, batch):
            return (batch.inputs * self.sign,), {}

    for count, sign in enumerate((1, -1, 1)):
        kdkit.run(
            taught(teacher=net(12, 1, "teacher", trained=True, view=View(sign))), out=tmp_path / f"{count}", **CPU
        )
        assert asked.samples() == (ROWS if count < 2 else 0)


@pytest.mark.parametrize(
    "teacher_cache", [CacheSettings(dtype="fp16"), CacheSettings(top=1), CacheSettings(dtype="fp16", top=2)]
)
def test_a_lossy_form_gives_the_same_figures_whether_it_is_recorded_or_not(teacher_cache, asked, tmp_path):
    recorded = run(taught(teacher_cache=teacher_cache), out=tmp_path / "first")
    assert asked.samples() == ROWS
    again = run(taught(teacher_cache=teacher_cache), out=tmp_path / "second")
    unrecorded = run(taught(teacher_cache=teacher_cache, epochs=3), teacher_cache="off")
    exact = run(taught())
    assert same(recorded[0], again[0])
    assert torch.allclose(recorded[0]["head.weight"], unrecorded[0]["head.weight"], atol=2e-3)
    assert not torch.equal(recorded[0]["head.weight"], exact[0]["head.weight"])


class Whole(nn.Module):
    """Normalises by the batch that it is shown."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(inputs - inputs.mean(0))


def hooked():
    teacher = net(12, 1, "teacher", trained=True)
    teacher.module.head.register_forward_hook(lambda *_: None)
    return teacher


REASONS = {
    "randomness of its own": ({"draws": None}, "the data's randomness is its own"),
    "as many draws as epochs": ({"draws": 3}, "in 3 epochs of 3 draws nothing is asked twice"),
    "the batch matters": ({"teacher": lambda: kdkit.Net("teacher", Whole(), trained=True)}, "the others in its batch"),
    "a hook": ({"teacher": hooked}, "has a hook of its own"),
}


@pytest.mark.parametrize(("changes", "reason"), REASONS.values(), ids=REASONS)
def test_where_it_cannot_be_exact_teachers_are_asked_at_every_step_and_the_reason_is_said(changes, reason, asked):
    recipe = taught(**{name: value() if callable(value) else value for name, value in changes.items()})
    _, _, notices = run(recipe)
    assert asked.samples() == 3 * ROWS
    assert any("asked at every step" in notice and reason in notice for notice in notices), notices


def test_a_loader_says_why_nothing_is_recorded():
    stream = TorchData(DataLoader(samples(24), 8), samples(12, 1), samples(12, 1), classes=("a", "b", "c"))
    _, _, notices = run(taught(data=stream))
    assert any("have no ids" in notice for notice in notices)
    assert run(taught(), teacher_cache="off")[2] == []


def test_a_run_that_no_other_shares_keeps_nothing_and_one_with_a_folder_does(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run(taught())
    assert list((tmp_path / "temporary").iterdir()) == []
    run(taught(draws=3), teacher_cache=tmp_path / "mine")  # for later runs, although nothing is asked twice in this one
    asked.calls.clear()
    run(taught(draws=3), teacher_cache=tmp_path / "mine")
    assert asked.samples() == 0


def test_where_there_is_no_room_the_reason_is_said(asked, tmp_path):
    _, _, notices = run(taught(), out=tmp_path / "run", teacher_cache_size=1e-8)
    assert "(--teacher-cache-size)" in notices[0]
    assert asked.samples() == 3 * ROWS


class Promised(Dataset):
    """Samples that kdkit cannot see all of, which are promised to stay the same."""

    def __init__(self, count):
        self.inputs, self.labels = samples(count).tensors

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.inputs[row], self.labels[row]


def test_answers_about_data_that_cannot_be_seen_whole_are_of_one_run(asked, tmp_path):
    def data():
        return TorchData(Promised(ROWS), Promised(12), Promised(12), classes=("a", "b", "c"), draws=1)

    for name in ("first", "second"):
        _, _, notices = run(taught(data=data()), out=tmp_path / name)
        assert asked.samples() == ROWS
        assert "for this run alone" in notices[0]
        assert not (tmp_path / name / "teacher_cache").exists()


def test_a_stage_that_shares_a_part_with_its_teacher_is_not_recorded(asked):
    teacher, student = net(4, 1, "teacher", trained=True), net(4, 2, "student")
    teacher.module.head.requires_grad_(False)
    student.module.head = teacher.module.head
    objective = kdkit.Match(teacher, kdkit.losses.SoftTargets())
    recipe = kdkit.Recipe(data=Drawn(), schedule=[kdkit.Stage({student: objective}, training(epochs=3))])
    _, _, notices = run(recipe)
    assert "it shares a Linear with what is trained" in notices[0]
    assert asked.samples() == 3 * ROWS


def spoiled(folder: Path) -> None:
    """Change a recorded answer behind kdkit's back."""
    for each in folder.glob("*/output"):
        values = torch.from_file(str(each), shared=True, size=ROWS * 3, dtype=torch.float32)
        values += 0.01


def test_an_audit_stops_a_run_whose_recorded_answers_are_not_the_teachers(tmp_path):
    kdkit.run(taught(), out=tmp_path / "first", **CPU)
    spoiled(tmp_path / "teacher_cache")
    with pytest.raises(CacheError, match=r"'teacher' does not say what is recorded.*--delete [0-9a-f]{12}\)"):
        kdkit.run(taught(), out=tmp_path / "second", **CPU)
    kdkit.run(taught(), out=tmp_path / "third", teacher_cache="off", **CPU)
    kdkit.run(taught(teacher_cache=CacheSettings(audit=0)), out=tmp_path / "fourth", **CPU)


def test_an_audit_stops_a_run_whose_teacher_is_tampered_with_while_it_goes_on():
    teacher = net(12, 1, "teacher", trained=True)

    class Tamperer:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            with torch.no_grad():
                teacher.module.head.bias += 0.1

    with pytest.raises(CacheError, match="of the largest figure away"):
        kdkit.run(taught(teacher=teacher, teacher_cache=CacheSettings(audit=0.5)), callbacks=[Tamperer()], **CPU)


def test_audits_ask_for_their_share_and_no_more(asked):
    run(taught(epochs=101, teacher_cache=CacheSettings(audit=0.02)))
    assert sum(size for _, size in asked.calls if size == 4) == pytest.approx(ROWS * 100 * 0.02, abs=4 + 4 * 4 + 8)


def test_an_audit_does_not_move_a_figure():
    assert same(
        run(taught(teacher_cache=CacheSettings(audit=1.0)))[0], run(taught(teacher_cache=CacheSettings(audit=0)))[0]
    )


def test_a_full_disk_ends_the_recording_and_not_the_run(asked, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdkit.teachers.cache.store.Store.write", full)
    with pytest.warns(UserWarning, match="asked at every step from now on: .*No space left"):
        recorded = run(taught())
    assert asked.samples() == 3 * ROWS + 8  # the first batch twice
    assert same(recorded[0], run(taught(), teacher_cache="off")[0])


def test_batches_that_say_nothing_of_their_samples_are_asked_for(asked):
    class Unsaid(Drawn):
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

    _, _, notices = run(taught(data=Unsaid()))
    assert "do not say which draw" in notices[0]
    assert asked.samples() == 3 * ROWS


def test_the_largest_outputs_are_kept_of_one_class_per_sample_only():
    class Several(Drawn):
        task = "multilabel"

    recipe = taught(data=Several(), teacher_cache=CacheSettings(top=1), metrics=(kdkit.metrics.MacroF1(),))
    assert any("cut to their 1 largest" in problem for problem in kdkit.check(recipe).problems)
    with pytest.raises(RecipeError, match=r"answers is Answers\("):
        taught(teacher_cache="fp16")
    with pytest.raises(CheckError, match="cut to their 1 largest"):
        kdkit.run(taught(data=Several(), teacher_cache=CacheSettings(top=1), metrics=(kdkit.metrics.MacroF1(),)), **CPU)


def test_a_run_whose_form_differs_is_not_gone_on_with(tmp_path):
    kdkit.run(taught(epochs=1), out=tmp_path / "run", **CPU)
    with pytest.raises(kdkit.errors.RunFolderError, match="differs in its teacher cache"):
        kdkit.run(taught(epochs=1, teacher_cache=CacheSettings(top=1)), out=tmp_path / "run", resume=True, **CPU)
    kdkit.run(taught(epochs=1, teacher_cache=CacheSettings(audit=0.5)), out=tmp_path / "run", resume=True, **CPU)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_answers_of_half_precision_are_recorded(precision, asked, tmp_path):
    first = run(taught(), out=tmp_path / "first", precision=precision)
    assert asked.samples() == ROWS
    second = run(taught(), out=tmp_path / "second", precision=precision)
    assert asked.samples() == 0
    assert same(first[0], second[0])


def test_workers_fetch_batches_whose_answers_are_read(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about forks in a process with threads
        run(taught(training={"workers": 1}))
    assert asked.samples() == ROWS


def test_a_folder_that_is_deleted_under_a_run_costs_it_nothing(asked, tmp_path):
    class Deleter:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            shutil.rmtree(tmp_path / "teacher_cache", ignore_errors=True)

    kdkit.run(taught(), out=tmp_path / "run", callbacks=[Deleter()], **CPU)
    assert asked.samples() == ROWS
    run(taught(), out=tmp_path / "again")
    assert asked.samples() == ROWS


def test_a_view_without_a_key_is_a_reason_and_no_error(asked):
    class Plain:
        def __call__(self, batch):
            return (batch.inputs,), {}

    _, _, notices = run(taught(teacher=net(12, 1, "teacher", trained=True, view=Plain())))
    assert "it cannot be looked at (AttributeError" in notices[0]
    assert asked.samples() == 3 * ROWS


def test_a_run_whose_data_cannot_be_seen_whole_goes_on_to_the_same_bits(tmp_path):
    def data():
        return TorchData(Promised(ROWS), Promised(12), Promised(12), classes=("a", "b", "c"), draws=1)

    class Stopper:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            if event.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kdkit.run(taught(data=data()), out=tmp_path / "cut", callbacks=[Stopper()], **CPU)
    assert (tmp_path / "cut" / "teacher_cache").exists()
    cut = run(taught(data=data()), out=tmp_path / "cut", resume=True)
    assert same(cut[0], run(taught(data=data()), out=tmp_path / "whole")[0])
    assert not (tmp_path / "cut" / "teacher_cache").exists()


def test_the_members_of_a_panel_are_recorded_and_a_past_is_not(asked):
    teachers = [net(12, seed, name, trained=True) for seed, name in ((1, "teacher"), (3, "other"))]
    student = net(4, 2, "student")
    panel = kdkit.Match(
        kdkit.Teachers(*teachers), kdkit.losses.PerTeacher(kdkit.losses.SoftTargets(), weights="confidence")
    )
    past = 0.1 * kdkit.Match(kdkit.Past(student), kdkit.losses.PSKD())
    stage = kdkit.Stage({student: panel + past}, training(epochs=3))
    first = run(kdkit.Recipe(data=Drawn(), schedule=[stage]))
    assert first[2] == []
    assert asked.samples("teacher") == ROWS
    asked.calls.clear()


def test_a_teacher_that_is_trained_further_is_asked_again(asked, tmp_path):
    teacher, student = net(12, 1, "teacher", trained=True), net(4, 2, "student")
    match = kdkit.Match(teacher, kdkit.losses.SoftTargets())
    stages = [
        kdkit.Stage({student: match}, training(epochs=2), name="before"),
        kdkit.Stage({teacher: kdkit.Truth(nn.CrossEntropyLoss())}, training(epochs=1)),
        kdkit.Stage({student: match}, training(epochs=2), name="after"),
    ]
    kdkit.run(kdkit.Recipe(data=Drawn(), schedule=[*stages]), out=tmp_path / "run", **CPU)
    assert asked.samples() == 2 * ROWS
    assert len(CacheFolder(tmp_path / "teacher_cache").kept()) == 2


def test_ids_of_another_type_or_layout_are_found(asked):
    class Odd(Drawn):
        def __init__(self):
            super().__init__()
            split, original = self.train, self.train.batch
            split.batch = lambda rows, draw: replace(
                original(rows, draw), ids=split.ids.int()[rows].repeat(2, 1).T[:, 0]
            )

    assert run(taught(data=Odd()))[2] == []
    assert asked.samples() == ROWS


def test_data_without_ids_is_a_reason_and_no_error(asked):
    data = Drawn()
    split = data.train
    data.train = type("Bare", (), {"__len__": lambda self: ROWS, "batch": lambda self, *a: split.batch(*a)})()
    _, _, notices = run(taught(data=data))
    assert "the data cannot be looked at (AttributeError" in notices[0]
    assert asked.samples() == 3 * ROWS
