"""Students in other forms than one network that is trained wholly on labelled samples."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import Adam, AdamW
from torch.utils.data import Dataset, TensorDataset

import kdkit
from kdkit import AverageWeights, Distiller, Match, Net, Optimizer, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import RecipeError
from kdkit.losses import RKD, IgnoreUnknown, PerLabelSoftTargets, SoftTargets
from tests.helpers.stages import Small, copied, data, same, training, truth

# Several students of one teacher


class Counted(Small):
    """A network that counts its forward passes on whole batches, and so leaves out those of checks."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.calls = 0

    def forward(self, inputs):
        self.calls += len(inputs) == 8
        return super().forward(inputs)


def pair(learning: tuple[int, ...] = (0, 1)):
    """Return a teacher, two students, and a recipe that trains these of them in one stage."""
    torch.manual_seed(0)
    teacher = Net("teacher", Counted(12), trained=True)
    students = [Net("small", Small(4, dropout=0.0)), Net("large", Small(6, dropout=0.0))]
    layers = teacher.module.body, teacher.module.norm
    objectives = {}
    for index in learning:
        taps = {"student": Tap(students[index].module.body), "target": Tap(layers[index])}
        objectives[students[index]] = truth() + Match(teacher, SoftTargets()) + Match(teacher, RKD(), **taps)
    optimizer = Optimizer(AdamW, lr=0.01)
    stage = Stage(objectives, training(epochs=3, optimizer=optimizer, keep="last"))
    return teacher, students, Recipe(data=data(), schedule=[stage])


def test_a_teacher_runs_once_per_batch_for_all_students_of_a_stage():
    teacher, students, recipe = pair()
    teacher_taps = recipe.stages[0].teachers
    assert [len(taps) for taps in teacher_taps.values()] == [2]  # one teacher, with the taps of both students
    result = kdkit.run(recipe, device="cpu", teacher_cache="off")
    # 3 epochs of 4 batches, and at the end the 24 samples of the validation and of the test split in batches of 8
    assert teacher.module.calls == 3 * 4 + 2 * 3
    assert set(result.metrics) == {"teacher", "small", "large"}
    assert set(result.history["small+large"][0]["terms"]) == {
        f"{net.name}: {label}" for net in students for label in ("truth", "teacher/soft_targets", "teacher/rkd")
    }


def test_a_student_trains_in_a_stage_with_another_as_it_does_alone():
    _, together, recipe = pair()
    kdkit.run(recipe, device="cpu")
    for index, student in enumerate(together):
        _, alone, recipe = pair((index,))
        kdkit.run(recipe, device="cpu")
        for key, value in alone[index].module.state_dict().items():
            torch.testing.assert_close(student.module.state_dict()[key], value)


def test_students_of_one_stage_may_have_different_learning_rates():
    _, (small, large), recipe = pair()
    before = copied(small.module), copied(large.module)

    def groups(named):
        named = list(named)
        slow = [parameter for name, parameter in named if name.startswith("small.")]
        return [
            {"params": slow, "lr": 0.0},
            {"params": [parameter for name, parameter in named if not name.startswith("small.")]},
        ]

    objectives = recipe.stages[0].objectives
    stage = Stage(objectives, training(optimizer=Optimizer(AdamW, lr=0.1, weight_decay=0.0, groups=groups)))
    kdkit.run(Recipe(data=data(), schedule=[stage]), device="cpu")
    assert torch.equal(small.module.head.weight, before[0]["head.weight"])
    assert not torch.equal(large.module.head.weight, before[1]["head.weight"])


# Samples without labels


def multilabel(count: int, seed: int, labelled: float = 1.0) -> TensorDataset:
    """Return samples whose three labels are the signs of three inputs; NaN in all three for a part of the samples."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    labels = (inputs[:, :3] > 0).float()
    labels[int(labelled * count) :] = math.nan
    return TensorDataset(inputs, labels)


class Signs(nn.Module):
    """A teacher that knows the labels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, inputs):
        return self.scale * inputs[:, :3]


def without_labels(labelled: float, *, match: bool) -> tuple[nn.Module, kdkit.Result]:
    torch.manual_seed(0)
    teacher, student = Net("teacher", Signs(), trained=True), Net("student", nn.Linear(6, 3))
    objective = Truth(IgnoreUnknown()) + Match(teacher, PerLabelSoftTargets()) if match else Truth(IgnoreUnknown())
    splits = multilabel(64, 0, labelled), multilabel(60, 1), multilabel(200, 2)
    recipe = Recipe(
        data=TorchData(*splits, classes=("a", "b", "c"), task="multilabel", unknown=math.nan),
        schedule=[Stage({student: objective}, Training(epochs=8, batch_size=8, optimizer=Optimizer(Adam, lr=0.03)))],
    )
    warns = nullcontext() if labelled else pytest.warns(UserWarning, match="term 'truth' was 0 in every batch")
    with warns:
        return student.module, kdkit.run(recipe, device="cpu")


def test_the_first_samples_of_the_data_may_have_no_labels():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 6, generator=generator)
    labels = (inputs[:, :3] > 0).float()
    labels[:12] = math.nan
    student = Net("student", nn.Linear(6, 3))
    splits = TorchData(TensorDataset(inputs, labels), multilabel(8, 1), classes=("a", "b", "c"), unknown=math.nan)
    kdkit.check(Recipe(data=splits, schedule=[Stage({student: Truth(IgnoreUnknown())}, training())])).require()


@pytest.mark.parametrize("labelled", [0.0, 0.1])
def test_a_student_learns_from_the_teacher_on_samples_without_labels(labelled):
    module, result = without_labels(labelled, match=True)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert result.metrics["student"]["macro_auprc"].value > 0.95
    assert all(math.isfinite(value) for epoch in result.history["student"] for value in epoch["terms"].values())
    if labelled == 0:
        assert result.history["student"][0]["terms"]["truth"] == 0
    else:
        _, alone = without_labels(labelled, match=False)
        assert result.metrics["student"]["macro_auprc"].value > alone.metrics["student"]["macro_auprc"].value


def test_unlabelled_samples_change_nothing_without_a_teacher():
    torch.manual_seed(0)
    module, _ = without_labels(0.0, match=False)
    torch.manual_seed(0)
    untrained = nn.Linear(6, 3)
    assert same(module.state_dict(), untrained.state_dict())


# Students of which a part is trained


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def frozen_body() -> Net:
    torch.manual_seed(1)
    module = Backbone()
    module.body[1].running_mean.fill_(0.3)  # as after a training
    module.body.requires_grad_(False)
    return Net("student", module)


@pytest.mark.parametrize("ema", [None, AverageWeights(decay=0.9)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_frozen_part_keeps_its_bits_with_weight_decay_and_averages(ema, decay, tmp_path):
    student, teacher = frozen_body(), Net("teacher", Small(12), trained=True)
    before = copied(student.module)
    options = training(epochs=4, ema=ema, optimizer=Optimizer(AdamW, lr=0.05, weight_decay=decay))
    stage = Stage({student: truth() + Match(teacher, SoftTargets())}, options)
    kdkit.run(Recipe(data=data(), schedule=[stage]), device="cpu", out=tmp_path / "run")
    saved = load_file(next(tmp_path.glob("run/1-student/weights*")))
    assert saved.keys() == before.keys()  # all weights are saved, not the trained ones only
    for state in (student.module.state_dict(), saved):
        for key, value in state.items():
            assert torch.equal(value, before[key]) == key.startswith("body."), key
    loaded = Net("student", Backbone(), weights=tmp_path / "run")
    assert loaded.trained
    assert same(loaded.module.state_dict(), student.module.state_dict())


def test_a_part_is_trained_in_a_first_stage_if_the_others_have_a_learning_rate_of_zero():
    student = Net("student", Small(4))
    states = [copied(student.module)]

    class Record:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            states.append(copied(student.module))

    def head_only(named):
        named = list(named)
        head, others = ([entry for name, entry in named if (".head." in name) == is_head] for is_head in (True, False))
        return [{"params": head}, {"params": others, "lr": 0.0}]

    first = training(epochs=1, optimizer=Optimizer(AdamW, lr=0.1, groups=head_only))
    stages = [Stage({student: truth()}, first, name="head"), Stage({student: truth()}, training(epochs=1), name="all")]
    kdkit.run(Recipe(data=data(), schedule=stages), device="cpu", callbacks=[Record()])
    for name in ("body", "norm", "head"):
        before, middle, after = (state[f"{name}.weight"] for state in states)
        assert torch.equal(before, middle) == (name != "head")
        assert not torch.equal(middle, after)


def test_the_optimizer_gets_trained_parameters_only():
    student, names = frozen_body(), []

    def groups(named):
        named = list(named)
        names.extend(name for name, _ in named)
        return [{"params": [parameter for _, parameter in named]}]

    stage = Stage({student: truth()}, training(optimizer=Optimizer(AdamW, lr=0.1, groups=groups)))
    kdkit.run(Recipe(data=data(), schedule=[stage]), device="cpu")
    assert set(names) == {"student.head.weight", "student.head.bias"}


# Adapters

WORDS = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class Texts(Dataset):
    def __init__(self, count, seed):
        self.tokens = torch.randint(0, 40, (count, 8), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row):
        return {"input_ids": self.tokens[row]}, self.tokens[row, 0] % 3


def classifier(seed: int):
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(**WORDS, intermediate_size=32, num_labels=3, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config)


def adapted(seed: int = 0):
    import peft

    settings = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    return peft.get_peft_model(classifier(seed), settings)


@pytest.mark.filterwarnings("ignore")  # of transformers and peft, when they are imported and when they save
@pytest.mark.parametrize("ema", [None, AverageWeights(decay=0.9)])
def test_only_the_adapters_of_a_student_are_trained_and_all_weights_are_saved(ema, tmp_path):
    student, teacher = (
        Net("student", adapted(), element="logits"),
        Net("teacher", classifier(1), trained=True, element="logits"),
    )
    before = copied(student.module)
    options = Training(epochs=2, batch_size=16, ema=ema, optimizer=Optimizer(AdamW, lr=0.02, weight_decay=0.1))
    stage = Stage({student: truth() + Match(teacher, SoftTargets())}, options)
    splits = TorchData(Texts(64, 0), Texts(32, 1), classes=["a", "b", "c"])
    kdkit.run(Recipe(data=splits, schedule=[stage]), device="cpu", out=tmp_path / "run")
    changed = {key for key, value in student.module.state_dict().items() if not torch.equal(value, before[key])}
    trained = {name for name, parameter in student.module.named_parameters() if parameter.requires_grad}
    assert changed == trained
    assert any("lora_A" in name for name in trained)
    loaded = Net("student", adapted(), element="logits", weights=tmp_path / "run")
    assert loaded.trained
    assert same(loaded.module.state_dict(), student.module.state_dict())
    student.module.save_pretrained(tmp_path / "adapters")
    with pytest.raises(RecipeError, match=r"has an adapter of peft.*Net\('student', peft.PeftModel.from_pretrained"):
        Net("student", adapted(), weights=tmp_path / "adapters")
    import peft

    restored = peft.PeftModel.from_pretrained(classifier(0), tmp_path / "adapters").eval()
    tokens = Texts(5, 3).tokens
    with torch.no_grad():
        torch.testing.assert_close(restored(tokens).logits, student.module.eval()(tokens).logits)


@pytest.mark.filterwarnings("ignore")
def test_a_distiller_trains_adapters_and_returns_all_weights():
    student, teacher = (
        Net("student", adapted(), element="logits"),
        Net("teacher", classifier(1), trained=True, element="logits"),
    )
    frozen = copy.deepcopy(student.module.base_model.model.bert.embeddings.state_dict())
    inputs, labels = {"input_ids": Texts(8, 0).tokens}, torch.arange(8) % 3
    with Distiller(student, truth() + Match(teacher, SoftTargets()), (inputs, labels)) as distiller:
        trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=0.02)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = distiller(inputs, labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert distiller.student_state_dict().keys() == adapted().state_dict().keys()
    assert same(student.module.base_model.model.bert.embeddings.state_dict(), frozen)
