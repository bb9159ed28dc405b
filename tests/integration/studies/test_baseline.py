"""A run with a baseline: the matched student without distillation."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

import kdkit
from kdkit import LinearRamp, Match, Net, Optimizer, Peer, Recipe, Stage, Training, Truth
from kdkit.errors import CheckError, RecipeError
from kdkit.losses import SoftTargets
from kdkit.nets.taps import Tap
from kdkit.recipe.balancing import GradNorm
from kdkit.recipe.baseline import with_baselines
from tests.helpers.callbacks import KillAfterEpoch, killed_and_resumed
from tests.helpers.command_line import ROOT
from tests.helpers.stages import assert_same_results
from tests.helpers.tiny import Mlp, plain_goal, same_state, state_of, tiny_data, tiny_net

LABELS = 0.3


def training(**options):
    return Training(**{"epochs": 3, "batch_size": 4, **options})


class Dropping(nn.Module):
    """A network that draws random numbers in training."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def distillation(*, teacher_weight=0.7, network=Dropping):
    """Return a recipe of a teacher stage and a student stage, and without the teacher's term if its weight is 0."""
    teacher = tiny_net("teacher", hidden=8, seed=1)
    torch.manual_seed(2)
    student = Net("student", network())
    objective = Truth(nn.CrossEntropyLoss())  # at the weight that a baseline has
    if teacher_weight:
        objective = LABELS * objective + teacher_weight * Match(teacher, SoftTargets(temperature=2))
    return Recipe(
        data=tiny_data(rows=24),
        schedule=[Stage({teacher: Truth(nn.CrossEntropyLoss())}, training()), Stage({student: objective}, training())],
    )


def test_a_baseline_has_the_weights_of_a_recipe_with_labels_only(tmp_path):
    result = kdkit.run(distillation, baseline=True, out=tmp_path / "run", seed=3)
    by_hand = kdkit.run(lambda: distillation(teacher_weight=0), seed=3)
    alone, expected = result.nets["student-alone"], by_hand.nets["student"]
    assert all(
        torch.equal(value, expected.network.state_dict()[key]) for key, value in alone.network.state_dict().items()
    )
    assert result.metrics["student-alone"] == by_hand.metrics["student"]
    assert (tmp_path / "run" / "3-student-alone" / "weights.safetensors").is_file()


class LabelsAgain:
    """The loss of a match that depends on the labels only, not on the teacher."""

    extra_kwargs = frozenset({"labels"})

    def __call__(self, student, target, *, labels):
        return nn.functional.cross_entropy(student, labels)


@pytest.mark.parametrize("ramp", [None, LinearRamp(start=0.2, end=0.7)])
def test_a_match_without_any_information_makes_no_difference(ramp):
    """Steps of SGD are proportional to the weights, so a baseline with smaller ones would learn less."""
    teacher = tiny_net("teacher", hidden=8, seed=1, trained=True)
    student = Net("student", Mlp())
    rest = 1 - LABELS if ramp is None else LinearRamp(start=0.8, end=0.3)
    objective = (LABELS if ramp is None else ramp) * Truth(nn.CrossEntropyLoss()) + rest * Match(teacher, LabelsAgain())
    sgd = training(optimizer=Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9), keep="last")
    result = kdkit.run(Recipe(data=tiny_data(rows=24), schedule=[Stage({student: objective}, sgd)]), baseline=True)
    distilled, alone = (result.nets[name].network.state_dict() for name in ("student", "student-alone"))
    for key, value in distilled.items():
        torch.testing.assert_close(value, alone[key], msg=key)


def by_name(_module):
    def groups(named):
        named = list(named)
        body = [parameter for name, parameter in named if name.startswith("student.body.")]
        rest = [parameter for name, parameter in named if not name.startswith("student.body.")]
        return [{"params": body, "lr": 0.0}, {"params": rest}]

    return groups


def by_module(module):
    return lambda _named: [{"params": module.body.parameters(), "lr": 0.0}, {"params": module.head.parameters()}]


@pytest.mark.parametrize("groups", [by_name, by_module])
def test_a_baseline_has_the_parameter_groups_of_its_student(groups):
    recipe = distillation()
    (student,) = recipe.stages[-1].objectives
    before = [weight.detach().clone() for weight in student.network.parameters()]
    options = training(optimizer=Optimizer(torch.optim.SGD, lr=0.1, groups=groups(student.network)))
    recipe = recipe.with_stages([*recipe.stages[:-1], replace(recipe.stages[-1], training=options)])
    result = kdkit.run(recipe, baseline=True)
    for net in (student, result.nets["student-alone"]):
        pairs = zip(net.network.parameters(), before, strict=True)
        assert [torch.equal(now.cpu(), start) for now, start in pairs] == [
            True,
            True,
            False,
            False,
        ]  # of the body, and of the head


def test_a_baseline_is_balanced_at_the_layer_of_its_copy():
    recipe = distillation()
    (student,) = recipe.stages[-1].objectives
    options = training(balancing=GradNorm(layer=student.module.head))
    recipe = recipe.with_stages([*recipe.stages[:-1], replace(recipe.stages[-1], training=options)])
    (alone,) = (stage := with_baselines(recipe).stages[-1]).objectives
    assert stage.training.balancing.layer is alone.module.head


def test_the_baseline_of_a_pruned_student_has_its_masks():
    recipe = distillation()
    (student,) = recipe.stages[-1].objectives
    prune.l1_unstructured(student.module.head, "weight", amount=6)
    (alone,) = with_baselines(recipe).stages[-1].objectives
    assert torch.equal(alone.module.head.weight_mask, student.module.head.weight_mask)
    assert torch.equal(alone.module.head.weight, student.module.head.weight)


def test_labels_of_a_baseline_weigh_at_least_1_together():
    teacher = tiny_net("teacher", hidden=8, seed=1, trained=True)
    label, match = Truth(nn.CrossEntropyLoss()), Match(teacher, SoftTargets())
    auxiliary = Truth(lambda outputs, _labels: outputs.square().mean(), label="small")
    ramp = LinearRamp(start=0, end=0.5)
    for objective, expected in [
        (0.2 * label + 0.8 * match, [(1, 1)]),
        (0.2 * label + 1000 * match, [(1, 1)]),  # of a hint, whose values are small
        (label + 1000 * match, [(1, 1)]),
        (2 * label + match, [(2, 2)]),
        (0.3 * label + 0.1 * auxiliary + 0.6 * match, [(0.75, 0.75), (0.25, 0.25)]),
        (label + 0.1 * auxiliary + match, [(1, 1), (0.1, 0.1)]),
        (ramp * label + match, [(1, 1)]),
        (ramp * label + 0.5 * auxiliary + match, [(0, 0.5), (1, 0.5)]),
        (LinearRamp(start=2, end=0.5) * label + match, [(2, 1)]),
        (0.2 * label + 0 * match, [(0.2, 0.2)]),  # trained on labels only, as its baseline is
    ]:
        stage = Stage({tiny_net("student"): objective}, training())
        alone = with_baselines(Recipe(data=tiny_data(), schedule=[stage])).stages[-1]
        (terms,) = alone.objectives.values()
        weights = [(weighted.weight(0.0), weighted.weight(1.0)) for weighted in terms]
        assert weights == [pytest.approx(pair) for pair in expected], objective


def test_the_weight_of_a_baseline_is_told(tmp_path):
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    splits = [TensorDataset(torch.randn(12, 4), torch.arange(12) % 3) for _ in "ab"]
    kdkit.distill(teacher, student, *splits, epochs=1, baseline=True, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [term["weight"] for term in record["terms"]["student-alone"]] == [[1, 1]]
    notice = "the labels of net 'student-alone' have weight 1, those of 'student' 0.5, so that the steps"
    assert any(notice in text for text in record["notices"])


def test_stages_of_a_student_with_one_weight_have_one_notice(tmp_path):
    student, teacher = tiny_net("student"), tiny_net("teacher", trained=True)
    objective = 0.5 * plain_goal() + 0.5 * Match(teacher, SoftTargets())
    stages = [Stage({student: objective}, training(epochs=1), name=name) for name in ("first", "second")]
    kdkit.run(Recipe(data=tiny_data(), schedule=stages), baseline=True, measure=False, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sum("the labels of net 'student-alone' have weight 1" in text for text in record["notices"]) == 1


def test_a_baseline_changes_nothing_else():
    result, without = kdkit.run(distillation, baseline=True), kdkit.run(distillation)
    assert result.student.name == without.student.name == "student"
    assert result.metrics["student"] == without.metrics["student"]
    assert result.metrics["teacher"] == without.metrics["teacher"]


def test_differences_from_the_baseline_are_recorded_and_printed(tmp_path, capsys):
    result = kdkit.run(distillation, baseline=True, out=tmp_path / "run", progress=True)
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [(row["student"], row["metric"]) for row in content["differences"]] == [
        ("student", "accuracy"),
        ("student", "macro_f1"),
    ]
    accuracies = [result.metrics[net]["accuracy"].value for net in ("student", "student-alone")]
    first = result.differences[0]
    assert first.value == pytest.approx(accuracies[0] - accuracies[1])
    assert first.interval[0] <= first.value <= first.interval[1]
    expected = f"distillation: accuracy {accuracies[0]:.3f} against {accuracies[1]:.3f} alone, "
    assert expected in capsys.readouterr().out


def test_a_run_with_a_baseline_resumes(tmp_path):
    whole = kdkit.run(distillation, baseline=True)
    kill = KillAfterEpoch(1, stage="student-alone")
    resumed = killed_and_resumed(distillation, tmp_path / "run", kill, baseline=True)
    assert_same_results(resumed, whole)
    assert resumed.differences == whole.differences


def test_a_tap_of_a_label_term_leads_into_the_baseline():
    teacher = tiny_net("teacher", hidden=8, seed=1, trained=True)
    student = Net("student", Dropping())
    auxiliary = Truth(lambda feature, _labels: feature.square().mean(), student=Tap(student.module.body), label="small")
    objective = auxiliary + Match(teacher, SoftTargets())
    recipe = with_baselines(Recipe(data=tiny_data(), schedule=[Stage({student: objective}, training())]))
    (net, copied), *_ = recipe.stages[-1].objectives.items()
    assert copied.terms[0].term.student.module is net.module.body
    assert net.module.body is not student.module.body


class Regularised(nn.Module):
    """A cross-entropy with a penalty on the weights of a network, which is in a tuple: it is trained already."""

    def __init__(self, module):
        super().__init__()
        self.networks = (module,)

    def forward(self, student, target):
        penalty = sum(part.abs().sum() for part in self.networks[0].parameters())
        return nn.functional.cross_entropy(student, target) + 1e-3 * penalty


@pytest.mark.parametrize("is_object", [True, False])
def test_a_loss_that_refers_to_the_student_by_a_function_is_refused_in_a_baseline(is_object):
    student = Net("student", Dropping())
    penalised = Regularised(student.module)
    loss = penalised if is_object else lambda outputs, labels: penalised(outputs, labels)
    objective = Truth(loss) + Match(tiny_net("teacher", hidden=8, trained=True), SoftTargets())
    recipe = Recipe(data=tiny_data(rows=24), schedule=[Stage({student: objective}, training(epochs=1))])
    assert not kdkit.check(recipe).problems
    problems = kdkit.check(with_baselines(recipe)).problems
    if is_object:
        assert not problems
    else:
        assert problems[0].startswith("stage 'student-alone': term 'truth': its loss uses the weights of the student")


def test_earlier_stages_on_labels_are_repeated():
    teacher = tiny_net("teacher", hidden=8, seed=1, trained=True)
    student = Net("student", Mlp())
    recipe = Recipe(
        data=tiny_data(rows=12),
        schedule=[
            Stage({student: Truth(nn.CrossEntropyLoss())}, training(), name="warmup"),
            Stage({student: Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())}, training(), name="distil"),
        ],
    )
    stages = with_baselines(recipe).stages
    assert [(stage.name, stage.baseline_of) for stage in stages[2:]] == [
        ("student-alone-warmup", "warmup"),
        ("student-alone", "distil"),
    ]
    assert len(kdkit.run(recipe, baseline=True).differences) == 2


def test_peers_each_have_a_baseline():
    first, second = Net("first", Mlp()), Net("second", Mlp())
    labels = nn.CrossEntropyLoss()
    objectives = {
        first: Truth(labels) + Match(Peer(second), SoftTargets()),
        second: Truth(labels) + Match(Peer(first), SoftTargets()),
    }
    result = kdkit.run(Recipe(data=tiny_data(rows=12), schedule=[Stage(objectives, training())]), baseline=True)
    assert {difference.baseline for difference in result.differences} == {"first-alone", "second-alone"}
    assert result.student.name == "second"


def test_a_student_without_labels_has_no_baseline():
    teacher = tiny_net("teacher", hidden=8, trained=True)
    recipe = Recipe(
        data=tiny_data(), schedule=[Stage({tiny_net("student"): Match(teacher, SoftTargets())}, training())]
    )
    with pytest.raises(RecipeError, match=r"'student' has no baseline: .* it learns only from teachers; .* Truth term"):
        kdkit.run(recipe, baseline=True)


def test_labels_of_weight_0_are_those_of_the_baseline():
    teacher = tiny_net("teacher", hidden=8, trained=True)
    weights = []
    for weight in (0.0, 0.5):
        objective = weight * Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
        stage = Stage({tiny_net("student"): objective}, training())
        result = kdkit.run(Recipe(data=tiny_data(), schedule=[stage]), baseline=True)
        weights.append(state_of(result.nets["student-alone"].module))
    assert same_state(*weights)


def test_a_recipe_without_teachers_has_no_baseline():
    recipe = Recipe(data=tiny_data(), schedule=[Stage({tiny_net("student"): Truth(nn.CrossEntropyLoss())}, training())])
    with pytest.raises(RecipeError, match="no net of that stage has a teacher"):
        kdkit.run(recipe, baseline=True)


def test_a_recipe_runs_once_also_with_a_baseline():
    recipe = distillation()
    kdkit.run(recipe, baseline=True)
    with pytest.raises(RecipeError, match="has already run"):
        kdkit.run(recipe)


def test_a_baseline_of_no_stage_is_a_problem():
    stage = Stage({tiny_net("student"): Truth(nn.CrossEntropyLoss())}, training(), baseline_of="teacher")
    with pytest.raises(CheckError, match="no stage before it is called 'teacher'"):
        kdkit.run(Recipe(data=tiny_data(), schedule=[stage]))


def test_a_stage_of_user_code_may_be_a_baseline_by_any_name():
    recipe = distillation()
    alone = Stage({Net("plain", Dropping()): Truth(nn.CrossEntropyLoss())}, training(), baseline_of="student")
    result = kdkit.run(recipe.with_stages([*recipe.stages, alone]))
    assert {(row.student, row.baseline) for row in result.differences} == {("student", "plain")}
    assert result.student.name == "student"


def test_a_metric_that_fails_for_a_resample_costs_its_difference_only():
    class Picky:
        name = "picky"

        def fit(self, validation):
            return self

        def compute(self, test):
            if len(set(test.labels.tolist())) < 3:
                raise ValueError("a class is missing")
            return kdkit.MetricResult(value=0.5)

    def recipe():
        made = distillation()
        object.__setattr__(made, "metrics", (Picky(), kdkit.metrics.Accuracy()))
        return made

    with pytest.warns(UserWarning, match=r"'picky' between 'student' and 'student-alone' has no interval"):
        result = kdkit.run(recipe, baseline=True)
    assert [row.metric for row in result.differences] == ["accuracy"]


@pytest.mark.slow  # as a small one in test_parallel_stages.py
def test_the_command_trains_baselines_in_parallel_too(kdkit_process, tmp_path):
    arguments = ["run", ROOT / "examples/hinton.py", "--epochs", "1", "--baseline", "--out", "run", "--jobs", "2"]
    command = kdkit_process(*arguments, "--device", "cpu")
    assert command.code == 0, command.err
    assert "distillation: accuracy" in command.out
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["metrics"].keys() == {"teacher", "student", "student-alone"}


def test_the_report_of_a_sweep_with_baselines_is_one_verdict_over_its_seeds(kdkit_here, tmp_path):
    lines = [
        "from tests.integration.studies import test_baseline",
        "",
        "def recipe():",
        "    return test_baseline.distillation()",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    sweep = kdkit_here("sweep", "mine.py", "--seeds", "2", "--baseline", "--device", "cpu", "--out", "sweep")
    assert sweep.code == 0, sweep.err
    report = kdkit_here("report", "sweep")
    assert report.code == 0, report.err
    assert "on average over 2 seeds" in report.out
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_of_different_trials_those_without_students_have_no_baseline(kdkit_here, tmp_path):
    lines = [
        "from tests.integration.studies import test_baseline",
        "",
        "def recipe(weight: float = 0.7):",
        "    return test_baseline.distillation(teacher_weight=weight)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    options = ("--baseline", "--device", "cpu", "--no-measure", "--out", "sweep")
    sweep = kdkit_here("sweep", "mine.py", "--weight", "0,0.7", "--seeds", "1", *options)
    assert sweep.code == 0, sweep.err
    assert "note: weight=0 has no baseline, because it has no distilled student" in sweep.out
    content = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [bool(cell["metrics_alone"]) for cell in content["cells"]] == [False, True]
    trial = tmp_path / "sweep" / "weight=0,seed=0"
    (trial / "2-student" / "stage.json").unlink()  # as if it had been killed
    for command in (("run", "--resume", "sweep/weight=0,seed=0"), ("rerun", "sweep/weight=0,seed=0")):
        done = kdkit_here(*command, "-q")
        assert done.code == 0, done.err
    alike = kdkit_here("run", "mine.py", "--weight", "0", "--seeds", "1", *options[:-1], "seeds", "-q")
    assert (alike.code, "no net of that stage has a teacher" in alike.err) == (1, True), alike.err
