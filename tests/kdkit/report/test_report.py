"""The page of a report: what it says about runs of each kind, and that it escapes what comes from data."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit.cli.plan import describe_weight
from kdkit.data.torch_data import TorchData
from kdkit.engine.display.tables import describe_difference
from kdkit.engine.storage.comparison import differences
from kdkit.engine.storage.finished_run import read_metrics
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import PluginWarning, RunFolderError
from kdkit.losses import PerTeacher, SoftTargets
from kdkit.metrics import Accuracy, MacroAUROC
from kdkit.plugins.manager import installed
from kdkit.report import Section, write_report
from kdkit.report.card import write_card
from kdkit.report.charts import heat_map, nice_ticks
from kdkit.report.formats import MINUS, tick
from kdkit.report.overview import net_table
from kdkit.report.runs import read_runs
from kdkit.report.verdict import headline_of, verdicts_of
from kdkit.utils.files import write
from kdkit.utils.sealed import json_parts
from tests.helpers.reports import (
    Page,
    PerPosition,
    distillation,
    positions,
    report_page,
    run,
    untaught,
    without_test_split,
)
from tests.helpers.tiny import FEATURES, one_stage, samples, tiny_net


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of runs that tests read: three seeds of one recipe with baselines, and one with another name."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        run(folder / f"seed{seed}", distillation, baseline=True, seed=seed, gradients=1, device="cpu")
    run(folder / "other", lambda: distillation(name="other"), seed=0)
    return folder


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return report_page(runs / "seed0", out=tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_needs_nothing_else(page):
    # a sandboxed page, whose policy lets it load nothing at all
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page.html
    assert "url(" not in page.html
    assert len(page.html) < 1_000_000


def test_the_verdict_compares_the_student_with_its_baseline(page, runs):
    content = json.loads((runs / "seed0" / "metrics.json").read_text())
    difference = content["differences"][0]
    expected = {
        "better": "In this run, the distilled student is better by ",
        "worse": "In this run, the distilled student is worse by ",
        "not distinguishable": "In this run, student and baseline cannot be distinguished.",
    }[difference["verdict"]]
    assert expected in page.text
    assert (
        "One seed cannot tell whether distillation helps: repeat the run with others, for example with --seeds 5"
        in page.text
    )
    values = [content["metrics"][net]["accuracy"]["value"] for net in ("student", "student-alone")]
    assert f"is {values[0]:.3f} against {values[1]:.3f} for the same student without a teacher" in page.text
    low, high = (f"{100 * bound:+.1f}".replace("-", "\N{MINUS SIGN}") for bound in difference["interval"])
    low, high = (text if text.strip("+\N{MINUS SIGN}") != "0.0" else "0.0" for text in (low, high))
    assert f"95 % interval {low} to {high}" in page.text


def test_every_section_is_there(page):
    titles = [attributes["data-tab"] for attributes in page.all("section") if "data-tab" in attributes]
    assert titles == ["Training", "Agreement", "Calibration", "Classes", "Errors", "Cost", "Setup"]
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_training_has_terms_metrics_and_gradients(page):
    text = page.panel("training").text
    for part in ("Validation Accuracy", "truth weight 0.5", "teacher/soft_targets weight 0.5", "Gradient norm"):
        assert part in text
    assert "Cosine of gradients" in text
    assert "2 epochs; epoch" in text


def test_agreement_has_the_student_and_the_baseline(page):
    text = page.panel("agreement").text
    assert "both right" in text
    assert text.count("student-alone") >= 1


def test_the_confusion_counts_every_sample(page, runs):
    cells = page.panel("errors").all("td")
    counts = [int(cell["title"].rsplit(": ", 1)[1]) for cell in cells if "title" in cell]
    assert sum(counts) == 2 * 6  # of the student and its baseline, on six samples


def test_cost_has_parameters_and_files(page, runs):
    text = page.panel("cost").text
    assert "53" in text  # parameters of the student
    # 53 parameters and 10 numbers of the batch norm in float32, and its count of batches in int64
    assert "260 B" in text
    assert "on one thread of the CPU, fp32" in text
    assert "µs" in text


def test_layers_of_the_student_and_its_baseline_are_compared_with_those_of_the_teacher(page, runs):
    panel = page.panel("agreement")
    labels = [chart["aria-label"] for chart in panel.all("svg")]
    assert labels == [f"Similarity of the layers of {net} and teacher" for net in ("student", "student-alone")]
    stored = json.loads((runs / "seed0" / "measurements.json").read_text())["similarities"][0]["values"][0][0]
    assert f"hidden, hidden: {stored:.3f}, the highest" in panel.text


def test_measurements_that_are_missing_or_damaged_leave_a_reason(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "run")
    (tmp_path / "run" / "measurements.json").unlink()
    page = report_page(tmp_path / "run", out=tmp_path / "report.html")
    assert "These runs measured no layers" in page.panel("agreement").text
    assert "1.03 kB" in page.panel("cost").text  # the file of the weights
    (tmp_path / "run" / "measurements.json").write_text("{}")
    page = report_page(tmp_path / "run", out=tmp_path / "report.html")
    assert "measurements.json cannot be read: it has no checksum" in page.panel("setup").text


def test_pipes_in_the_place_of_files_are_not_read(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "run")
    history = next((tmp_path / "run").glob("*/history.jsonl"))
    for file in (history, tmp_path / "run" / "recipe.py"):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    page = report_page(tmp_path / "run", out=tmp_path / "report.html")
    assert "history.jsonl cannot be read" in page.panel("setup").text
    with pytest.raises(RunFolderError, match=r"history.jsonl cannot be read: it is not a file"):
        differences(tmp_path / "run", runs / "seed0")


def test_a_heat_map_of_many_layers_escapes_their_names_and_shows_values_on_hover():
    names = [f"layers.{index}.<b>attention.output" for index in range(60)]
    values = [[math.nan if row == column == 0 else row / 59 for column in range(60)] for row in range(60)]
    chart = heat_map("Similarity", values, rows=names, columns=names)
    page = Page(chart)
    assert "<b>" not in chart
    assert "layers.7.<b>attention.output, layers.59.<b>attention.output: 0.119" in page.text
    assert "undefined" in page.text
    assert not [text for text in page.all("text") if "value" in text["class"]]
    assert len(page.all("rect")) == 60 * 60 + 60  # with an outline in each row
    few = Page(heat_map("Similarity", [[0.25, 1.2]], rows=["a"], columns=["b", "c"]))
    assert [text["class"] for text in few.all("text") if "value" in text["class"]] == ["value mid", "value mid high"]
    assert "1.00" in few.text


def test_tiny_numbers_have_distinct_ticks():
    assert nice_ticks(2e-14, 4e-14) == [2e-14, 2.5e-14, 3e-14, 3.5e-14, 4e-14]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1e-3, ["0", "2.5e-4", "5e-4", "7.5e-4", "0.001"]),
        (1.2e-14, 1.8e-14, ["1.2e-14", "1.4e-14", "1.6e-14", "1.8e-14"]),
        (-5e5, 5e5, ["-5e5", "-2.5e5", "0", "2.5e5", "5e5"]),
        (12.345, 12.348, ["12.345", "12.346", "12.347", "12.348"]),
        (-0.5, 0.25, ["-0.6", "-0.4", "-0.2", "0", "0.2", "0.4"]),
        (5 / 12, 5 / 12, ["0.4167"]),  # a constant value
        (1e-5 / 3, 1e-5 / 3, ["3.333e-6"]),
    ],
)
def test_the_labels_of_an_axis_have_all_digits(low, high, labels):
    assert [tick(value).replace(MINUS, "-") for value in nice_ticks(low, high)] == labels


def test_seeds_are_compared_in_pairs(runs, tmp_path):
    page = report_page(*(runs / f"seed{seed}" for seed in range(3)), out=tmp_path / "report.html")
    assert "on average over 3 seeds" in page.text
    assert (
        "The interval includes the choice of the seeds (Student's t interval over 3 seeds, paired by seed: "
        in page.text
    )
    assert "and of the test samples (paired bootstrap over 6 samples: " in page.text
    assert {"seed0", "seed1", "seed2"} <= {text.strip() for text in page.texts}


def test_the_networks_of_several_seeds_have_a_mean_and_a_standard_deviation(runs):
    reports = read_runs([runs])[0]
    seeds, other = [run for run in reports if run.label != "other"], [run for run in reports if run.label == "other"]
    table = net_table(reports, verdicts_of(reports))
    assert table["columns"][0] == "recipe, 3 seeds"
    (row,) = [row for row in table["rows"] if (row["net"], row["metric"]) == ("student", "Accuracy")]
    values = [run.metrics.results["student"]["accuracy"].value for run in seeds]
    assert row["cells"][0]["text"] == f"{mean(values):.3f}"
    assert row["cells"][0]["detail"] == f"± {stdev(values):.3f}"
    assert len(row["cells"]) == len(table["columns"]) == 5
    assert net_table(other, verdicts_of(other))["has_means"] is False


def test_a_folder_of_runs_stands_for_all_of_them(runs, tmp_path):
    report = write_report([runs], tmp_path / "report.html")
    assert [run.label for run in report.runs] == ["other", "seed0", "seed1", "seed2"]
    assert len(report.verdicts) == 2
    # Paths may be strings, and a single folder needs no list.
    assert len(write_report(str(runs), str(tmp_path / "again.html")).runs) == 4


def test_a_run_that_is_named_by_two_paths_is_shown_once(runs, monkeypatch):
    monkeypatch.chdir(runs)
    shown, _ = read_runs([Path("seed0"), runs / "seed0", runs / "other" / ".." / "seed0"])
    assert [run.label for run in shown] == ["seed0"]


def test_runs_of_one_seed_are_no_sample_of_seeds(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "copy")
    report = write_report([runs / "seed0", tmp_path / "copy"], tmp_path / "report.html")
    assert len(report.verdicts) == 2


def test_the_verdict_is_about_the_metric_that_chose_the_epochs(tmp_path):
    def recipe():
        made = distillation()
        stages = [
            kdkit.Stage(stage.objectives, replace(stage.training, monitor="macro_f1"), name=stage.name)
            for stage in made.stages
        ]
        return made.with_stages(stages)

    folder = run(tmp_path / "run", recipe, baseline=True)
    differences = json.loads((folder / "metrics.json").read_text())["differences"]
    assert [row["metric"] for row in differences] == ["macro_f1", "accuracy"]
    page = report_page(folder, out=tmp_path / "report.html")
    assert "Macro F1 on the test split is" in page.text
    teacher = report_page(run(tmp_path / "other", recipe), out=tmp_path / "other.html")
    assert "Macro F1 on the test split is" in teacher.text


def test_an_interval_that_is_undefined_is_left_out(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed0", folder)
    content = json.loads((folder / "metrics.json").read_text())
    del content["checksum"]
    for row in content["differences"]:
        row["interval"] = [math.nan, math.nan]
    write(folder / "metrics.json", *json_parts(content))
    assert " points, no interval." in report_page(folder, out=tmp_path / "report.html").text
    write_card(folder, tmp_path / "card.md")
    assert "nan" not in (tmp_path / "card.md").read_text()


def test_other_metrics_with_another_verdict_are_named(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed0", folder)
    content = json.loads((folder / "metrics.json").read_text())
    del content["checksum"]
    for row, verdict in zip(content["differences"], ("not distinguishable", "better"), strict=True):
        row["verdict"] = verdict
    write(folder / "metrics.json", *json_parts(content))
    page = report_page(folder, out=tmp_path / "report.html")
    assert "Other metrics: Macro F1 better." in page.text


def test_runs_of_other_losses_are_no_seeds_of_one_recipe(tmp_path):
    folders = [
        run(tmp_path / str(seed), lambda seed=seed: distillation(label=f"term {seed}"), seed=seed) for seed in range(2)
    ]
    assert len(write_report(folders, tmp_path / "report.html").verdicts) == 2


def test_runs_of_students_of_other_sizes_are_no_seeds_of_one_recipe(runs, tmp_path):
    for name in ("seed1", "seed2"):
        shutil.copytree(runs / name, tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        del record["checksum"]
        record["nets"]["student"]["parameters"] += 1
        write(tmp_path / name / "run.json", *json_parts(record))
    folders = [runs / "seed0", runs / "seed1", tmp_path / "seed1", tmp_path / "seed2"]
    verdicts = write_report(folders, tmp_path / "report.html").verdicts
    assert [[run.folder for run in verdict.runs] for verdict in verdicts] == [folders[:2], folders[2:]]
    # Both have the same recipe and no options, so their runs distinguish them.
    first, second = (verdict.label for verdict in verdicts)
    assert first == f"recipe, 2 seeds ({runs.name}/seed0, {runs.name}/seed1)"
    assert second == f"recipe, 2 seeds ({tmp_path.name}/seed1, {tmp_path.name}/seed2)"


def test_a_chart_of_a_term_names_its_weight_only_if_all_runs_have_it(tmp_path):
    def recipe(weight):
        labels, teacher = kdkit.Truth(nn.CrossEntropyLoss()), tiny_net("teacher", trained=True)
        return one_stage(tiny_net("student"), weight * labels + 0.2 * kdkit.Match(teacher, SoftTargets()))

    folders = [
        run(tmp_path / str(weight), lambda weight=weight: recipe(weight), measure=False) for weight in (0.3, 0.8)
    ]
    text = report_page(*folders, out=tmp_path / "report.html").panel("training").text
    assert "truth weight" not in text
    assert "teacher/soft_targets weight 0.2" in text
    assert "truth weight 0.3" in report_page(folders[0], out=tmp_path / "report.html").panel("training").text


def test_a_weight_that_changes_between_equal_ends_is_shown_by_its_factors(tmp_path):
    def alternate(progress):
        return float(progress < 0.2 or progress > 0.8)

    def recipe():
        match = kdkit.Match(tiny_net("teacher", trained=True), SoftTargets())
        labels = kdkit.Truth(nn.CrossEntropyLoss())
        return one_stage(tiny_net("student"), 0.5 * labels + alternate * (0.25 * match))

    (plan,) = kdkit.check(recipe()).stage_plans
    assert [describe_weight(term) for term in plan.terms] == ["0.5", "0.25 * alternate"]
    folder = run(tmp_path / "run", recipe, measure=False)
    text = report_page(folder, out=tmp_path / "report.html").panel("training").text
    assert "teacher/soft_targets weight 0.25 * alternate" in text


def test_the_verdicts_on_all_students_of_a_stage_are_named(tmp_path):
    def recipe():
        first, second = (tiny_net(name, seed=seed) for seed, name in enumerate(("first", "second")))
        objectives = {
            net: kdkit.Truth(nn.CrossEntropyLoss()) + kdkit.Match(kdkit.Peer(peer), SoftTargets())
            for net, peer in ((first, second), (second, first))
        }
        return replace(
            one_stage(first, objectives[first]), schedule=[kdkit.Stage(objectives, kdkit.Training(epochs=1))]
        )

    page = report_page(run(tmp_path / "run", recipe, baseline=True, measure=False), out=tmp_path / "report.html")
    assert "of second on the test split" in page.text
    row = next(
        row
        for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["differences"]
        if row["student"] == "first"
    )
    assert f"Other students: first {row['verdict']}. " in page.text


def test_each_member_of_several_teachers_is_a_teacher(tmp_path):
    def recipe():
        teachers = kdkit.Teachers(*(tiny_net(name, trained=True) for name in ("first", "second")))
        return one_stage(tiny_net("student"), kdkit.Match(teachers, PerTeacher(SoftTargets())))

    page = report_page(run(tmp_path / "run", recipe, measure=False), out=tmp_path / "report.html")
    assert "for its teacher first: " in page.text
    for teacher in ("first", "second"):
        assert f"only {teacher} right" in page.panel("agreement").text


def test_without_a_baseline_the_student_is_compared_with_its_teacher(runs, tmp_path):
    page = report_page(runs / "other", out=tmp_path / "report.html")
    assert "for its teacher: " in page.text
    assert (
        "To tell whether distillation helped, also train the same student without it: run with --baseline." in page.text
    )
    assert "Distillation helped" not in page.text


def test_a_run_without_a_teacher(tmp_path):
    page = report_page(untaught(tmp_path / "run"), out=tmp_path / "report.html")
    assert "There is nothing to compare the student with." in page.text
    folders = [untaught(tmp_path / f"seed{seed}", seed=seed, measure=False) for seed in range(2)]
    (verdict,) = write_report(folders, tmp_path / "seeds.html").verdicts
    assert verdict.sentence.endswith(" on the test split, on average over 2 seeds.")
    assert "No teacher of a student has predictions" in page.text


def test_several_labels_without_a_test_split(tmp_path):
    folder = run(tmp_path / "run", lambda: distillation("multilabel", without_test_split()), baseline=True)
    page = report_page(folder, out=tmp_path / "report.html")
    assert "on the validation split" in page.text
    assert "so all values are better than those on new samples" in page.text
    assert "Rows are missed classes" in page.text


def test_numbers_have_a_scatter_instead_of_classes(tmp_path):
    folder = run(tmp_path / "run", lambda: distillation("regression"), baseline=True)
    page = report_page(folder, out=tmp_path / "report.html")
    assert "The predictions of these networks have no classes." in page.text
    assert "Predicted over true values" in page.text
    assert "These networks have no class probabilities" in page.text


def test_labels_per_position(tmp_path):
    folder = run(tmp_path / "run", lambda: distillation(data=positions(), network=PerPosition), baseline=True)
    page = report_page(folder, out=tmp_path / "report.html")
    assert "true predicted positions share" in page.panel("errors").text
    assert "Cells are coloured by their share of the row" in page.text
    assert "AUROC" not in page.panel("classes").text
    assert "both right" in page.panel("agreement").text


def test_an_undefined_metric_has_no_verdict(tmp_path):
    def recipe():
        one_class = TensorDataset(torch.randn(6, FEATURES), torch.zeros(6, dtype=torch.long))
        made = distillation(data=TorchData(samples(rows=24), samples(seed=1), one_class, classes=["a", "b", "c"]))
        object.__setattr__(made, "metrics", (MacroAUROC(), Accuracy()))
        return made

    folders = [run(tmp_path / str(seed), recipe, baseline=True, measure=False, seed=seed) for seed in range(2)]
    page = report_page(folders[0], out=tmp_path / "report.html")
    assert "No paired comparison." in page.text
    assert "on the test split, and \N{EN DASH} for student-alone. Macro AUROC is undefined." in page.text
    assert "is undefined in at least one run." in report_page(*folders, out=tmp_path / "report.html").text


def test_differences_of_a_metric_in_percent_are_not_in_points(tmp_path):
    class Percent:
        name = "percent"

        def fit(self, validation):
            return self

        def compute(self, test):
            return kdkit.metrics.MetricResult(value=40.0)

    def recipe():
        made = distillation()
        object.__setattr__(made, "metrics", (Percent(),))
        return made

    page = report_page(run(tmp_path / "run", recipe, baseline=True), out=tmp_path / "report.html")
    # A difference of 0 could be that of a share.
    assert "is 40.000 against 40.000 for the same student without a teacher: +0, 95 %" in page.text
    assert "points" not in page.text


def test_differences_of_an_error_below_1_are_not_in_points(tmp_path):
    class ForceError:
        name, lower_is_better = "force_error", True

        def fit(self, validation):
            return self

        def compute(self, test):
            return kdkit.metrics.MetricResult(value=float(np.abs(test.outputs).mean() / 100))

    def recipe():
        made = distillation()
        object.__setattr__(made, "metrics", (ForceError(),))
        return made

    folder = run(tmp_path / "run", recipe, baseline=True)
    assert "points" not in report_page(folder, out=tmp_path / "report.html").text
    metrics = read_metrics(folder)
    assert "points" not in describe_difference(metrics.differences[0], metrics.results)


def test_metrics_that_cannot_be_repeated_have_no_interval(tmp_path):
    class Odd:
        name = "odd"

        def fit(self, validation):
            return self

        def compute(self, test):
            return kdkit.metrics.MetricResult(value=0.25)

    def recipe():
        made = distillation()
        object.__setattr__(made, "metrics", (Odd(), MacroAUROC()))
        return made

    page = report_page(run(tmp_path / "run", recipe), out=tmp_path / "report.html")
    assert "No paired comparison." in page.text
    assert "Odd of student is 0.250 on the test split, and 0.250 for teacher." in page.text


HOSTILE = "<script>alert(1)</script>"


def test_hostile_names_are_escaped(tmp_path):
    names = [HOSTILE, "</style><img src=x onerror=alert(1)>", "\x1b[31m\u202e\u200b&\"'"]
    data = TorchData(*(samples("multiclass", 12, seed=seed) for seed in range(3)), classes=names)

    def recipe():
        return distillation(data=data, name=HOSTILE, label="'\"><b onclick=alert(1)>")

    try:
        (tmp_path / 'run"><img src=x>').mkdir()
    except OSError:
        pytest.skip("Windows has no folders with such names")
    folder = run(tmp_path / 'run"><img src=x>', recipe, baseline=True)
    (folder / "recipe.py").write_text("</pre><script>alert(2)</script>\x00\x1b")
    plain = report_page(run(tmp_path / "plain", baseline=True), out=tmp_path / "plain.html")
    page = report_page(folder, out=tmp_path / "report.html")
    assert len(page.all("script")) == len(plain.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in page.text
    assert "</pre><script>alert(2)</script>\\x00\\x1b" in page.text
    assert "\\x1b[31m\\u202e\\u200b&\"'" in page.text
    assert not any(character in page.html for character in "\x00\x1b\u202e\u200b")


def test_values_of_a_changed_record_are_only_text(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed0", folder)
    record = json.loads((folder / "run.json").read_text())
    del record["checksum"]
    record |= {"terms": [1], "nets": "none", "baselines": {"student": HOSTILE}, "command": {"arguments": 3}}
    record |= {"versions": {"x": HOSTILE}, "notices": {"a": 1}, "recipe": [HOSTILE], "options": None}
    write(folder / "run.json", *json_parts(record))
    page = report_page(folder, out=tmp_path / "report.html")
    assert len(page.all("script")) == 1
    assert "student" in page.text


def test_a_damaged_file_of_predictions_is_named(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed0", folder)
    file = folder / "1-student" / "predictions-student-test.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    page = report_page(folder, out=tmp_path / "report.html")
    assert "predictions-student-test.safetensors cannot be read" in page.text
    assert "against" in page.text  # the stored difference is still there


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_studies_in_a_folder_of_runs_are_named(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "first")
    shutil.copytree(runs / "seed0", tmp_path / "sweep" / "temperature=2")
    report = write_report(tmp_path, tmp_path / "report.html")
    sweep = tmp_path / "sweep"
    assert report.left_out == (f"the runs in sweep of {tmp_path} are left out; for their report, pass {sweep}",)
    assert [run.label for run in report.runs] == ["first"]


def test_runs_are_in_the_order_of_their_seeds(runs, tmp_path):
    for seed in (10, 2, 0):
        shutil.copytree(runs / "seed0", tmp_path / f"lr=0.5,seed={seed}")
    shown, _ = read_runs([tmp_path])
    assert [run.label for run in shown] == ["lr=0.5,seed=0", "lr=0.5,seed=2", "lr=0.5,seed=10"]


def test_a_report_of_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="at least one folder"):
        write_report(tmp_path.glob("seed*"), tmp_path / "report.html")
    assert not [*tmp_path.iterdir()]


def test_a_folder_of_studies_is_refused_with_the_name_of_one(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "runs" / "study" / "seed0")
    with pytest.raises(RunFolderError, match=r"no run\.json in it; did you mean .*study\?$"):
        write_report(tmp_path / "runs", tmp_path / "report.html")


def test_runs_of_a_study_that_are_not_finished_are_left_out_and_named(runs, tmp_path, kdkit_here):
    study = tmp_path / "study"
    for name in ("seed0", "seed1", "seed2"):
        shutil.copytree(runs / name, study / name)
    (study / "seed1" / "metrics.json").unlink()
    (study / "old").mkdir()
    (study / "old" / "run.json").write_text('{"format": 1}')
    result = kdkit_here("report", study)
    assert result.code == 0, result.err
    sentence = f"2 of the 4 runs in {study} are left out: {study}/old/run.json has format 1"
    assert f"warning: {sentence}" in result.err
    assert "seed1 holds no metrics" in result.err
    assert "on average over 2 seeds" in result.out
    assert sentence in Page((study / "report.html").read_text()).text
    for name in ("seed0", "seed2"):
        (study / name / "metrics.json").unlink()
    with pytest.raises(RunFolderError, match=r"old/run\.json has format 1"):
        write_report([study], tmp_path / "none.html")
    with pytest.raises(RunFolderError, match=r"seed1 holds no metrics.*seed1', resume=True\) in Python$"):
        write_report([runs / "seed0", study / "seed1"], tmp_path / "none.html")


def test_a_run_killed_during_its_evaluation_is_no_finished_run(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def save_then_die(self, *args, **options):
        save(self, *args, **options)
        raise Killed

    save = RunFolder.save_metrics
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_metrics", save_then_die)
        with pytest.raises(Killed):
            run(tmp_path / "first", distillation, measure=False)
    # It has metrics of the teacher alone, which would be taken for the student.
    with pytest.raises(RunFolderError, match=r"not finished, with metrics of teacher so far.*first', resume=True"):
        write_report(tmp_path / "first", tmp_path / "report.html")
    run(tmp_path / "first", distillation, measure=False, resume=True)
    assert write_report(tmp_path / "first", tmp_path / "report.html").verdicts[0].figures[0].name == "student"


def test_plugins_add_sections(runs, tmp_path):
    class Plugin:
        @kdkit.hookimpl
        def report_sections(self, report):
            return [Section("Records & more", f"<p>{len(report.runs)} run of {report.runs[0].student}</p>")]

    class Broken:
        @kdkit.hookimpl
        def report_sections(self, report):
            return [Section("Half", "<p>of a plugin</p>"), "no section"]

    installed().add(Broken(), "test-broken", installed=True)
    installed().add(Plugin(), "test-sections")
    with pytest.warns(PluginWarning, match="plugin 'test-broken' cannot add its sections .*; got a list with a str"):
        page = report_page(runs / "seed0", out=tmp_path / "report.html")
    assert "1 run of student" in page.text
    assert "of a plugin" not in page.text
    assert any(attributes.get("data-tab") == "Records & more" for attributes in page.all("section"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            lambda: Section("Nights", "<p></p>"),
            r"must return a list of kdkit.report.Section\(title, html\); got a Section",
        ),
        (lambda: "<p></p>", "got a str"),
        (
            lambda: [Section("Nights", None)],
            "the title and the html of a Section must be texts; got a str and a NoneType",
        ),
    ],
)
def test_sections_of_another_form_are_left_out_with_a_warning(runs, tmp_path, sections, message):
    class Plugin:
        @kdkit.hookimpl
        def report_sections(self):
            return sections()

    installed().add(Plugin(), "test-form", installed=True)
    with pytest.warns(PluginWarning, match=f"plugin 'test-form' cannot add its sections to the report: .*{message}"):
        page = report_page(runs / "seed0", out=tmp_path / "report.html")
    assert not any(attributes.get("data-tab") == "Nights" for attributes in page.all("section"))


def test_no_code_of_the_recipe_is_run(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed0", folder)
    (folder / "recipe.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    write_report([folder], tmp_path / "report.html")
    assert not (tmp_path / "executed").exists()


def test_the_command_prints_the_verdict(kdkit_here, runs, tmp_path):
    result = kdkit_here("report", runs / "seed0", "--out", tmp_path / "page.html")
    assert result.code == 0, result.err
    assert "for the same student without a teacher" in result.out
    assert "saved to" in result.out
    assert Page((tmp_path / "page.html").read_text()).panel("setup").text


def test_the_page_of_a_run_is_written_to_its_folder(kdkit_here, tmp_path):
    folder = run(tmp_path / "run")
    assert kdkit_here("report", folder).code == 0
    assert (folder / "report.html").is_file()
    kdkit.run(distillation, out=folder, resume=True)  # which it does not disturb


def test_a_thousand_classes_make_a_small_page(tmp_path):
    classes = [f"class {index}" for index in range(1000)]
    random = torch.Generator().manual_seed(0)

    def split(rows):
        labels = torch.randint(1000, (rows,), generator=random)
        return torch.utils.data.TensorDataset(torch.randn(rows, 4, generator=random), labels)

    data = TorchData(split(32), split(150), split(150), classes=classes)
    network = lambda: nn.Linear(4, 1000)  # noqa: E731
    folder = run(tmp_path / "run", lambda: distillation(data=data, network=network), baseline=True)
    page = report_page(folder, out=tmp_path / "report.html")
    assert len(page.html) < 5_000_000
    assert "600 rare classes are not shown" in page.text
    shown = {attributes.get("data-sort") for attributes in page.panel("classes").all("th")}
    assert {classes[label] for label in data.test.dataset.tensors[1].tolist()} <= shown


def test_losses_whose_repr_has_an_address_are_one_recipe(tmp_path):
    class Plain:
        def __call__(self, student, target):
            return (student - target).square().mean()

    folders = [
        run(tmp_path / str(seed), lambda: distillation(kd_loss=Plain()), baseline=True, seed=seed) for seed in range(2)
    ]
    report = write_report(folders, tmp_path / "report.html")
    assert [len(verdict.runs) for verdict in report.verdicts] == [2]


def test_runs_with_and_without_a_sampler_have_different_settings(tmp_path):
    folders = [run(tmp_path / str(seed), distillation, baseline=True, seed=seed) for seed in range(2)]
    sampled = distillation()
    sampled.data.train.sampler = [*range(len(sampled.data.train))]
    other = run(tmp_path / "sampled", sampled, baseline=True, seed=2)
    report = write_report([*folders, other], tmp_path / "report.html")
    assert [len(verdict.runs) for verdict in report.verdicts] == [2, 1]
    assert "list of 24 rows (" in Page((tmp_path / "report.html").read_text()).text
    write_card(other, tmp_path / "card.md")
    assert "| sampler | `list of 24 rows (" in (tmp_path / "card.md").read_text()


def test_one_seed_of_each_setting_decides_nothing(runs, tmp_path):
    other = run(tmp_path / "run", lambda: distillation(label="other"), baseline=True)
    page = report_page(runs / "seed0", other, out=tmp_path / "report.html")
    assert "One seed of each cannot tell whether distillation helps." in page.text
    assert "Distillation helped" not in page.text
    report = write_report([*(runs / f"seed{seed}" for seed in range(3)), other], tmp_path / "report.html")
    assert headline_of(report.verdicts).endswith(" of 1 setting with several seeds.")
    seeds, _ = report.verdicts
    helped, without_effect, hurt = (replace(seeds, tone=tone) for tone in ("better", "open", "worse"))
    assert headline_of([helped, without_effect, helped]) == "Distillation helped in 2 of 3 settings."
    assert headline_of([hurt, without_effect]) == "Distillation helped in none of 2 settings, and hurt in 1."
    many = headline_of([helped, *[without_effect] * 3])
    assert many.startswith("Distillation helped in 1 of 4 settings. The intervals are not corrected for multiple")


def test_a_repetition_of_a_run_does_not_change_the_verdict_over_its_seeds(runs, tmp_path):
    repetition = shutil.copytree(runs / "seed1", tmp_path / "seed1-rerun")
    report = write_report([*(runs / f"seed{seed}" for seed in range(3)), repetition], tmp_path / "report.html")
    alone = write_report([runs / f"seed{seed}" for seed in range(3)], tmp_path / "report.html")
    assert [len(verdict.runs) for verdict in report.verdicts] == [3, 1]
    assert report.verdicts[0].differences == alone.verdicts[0].differences


def test_a_metric_of_user_code_is_decided_by_its_stored_intervals(tmp_path):
    class Doubled(MacroAUROC):
        name = "doubled"

        def compute(self, test):
            return kdkit.metrics.MetricResult(value=2 * super().compute(test).value)

        def resampled(self, test, counts):
            values, by_class = super().resampled(test, counts)
            return type(super().resampled(test, counts))(2 * values, by_class)

    def recipe():
        made = distillation()
        object.__setattr__(made, "metrics", (Doubled(),))
        return made

    folders = [run(tmp_path / str(seed), recipe, baseline=True, seed=seed) for seed in range(2)]
    (verdict,) = write_report(folders, tmp_path / "report.html").verdicts
    assert "The interval includes the choice of the seeds" in verdict.caveat
    rows = [json.loads((folder / "metrics.json").read_text())["differences"][0] for folder in folders]
    low, high = (sum(row["interval"][side] for row in rows) / 2 for side in (0, 1))
    first = verdict.differences[0]
    assert first.interval[0] <= low <= high <= first.interval[1]
