"""A report shows the ECGs that the student got most wrong, from the files of the run alone."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import kdkit
from kdkit import Net, Recipe, Stage, Training, Truth
from kdkit.engine.storage.finished_run import read_net_report
from kdkit.report import write_report
from kdkit.report.formats import DASH
from kdkit_ecg import Leads, LRHNet, Synthetic
from kdkit_ecg.datasets.signal_split import RATE, SIGNAL
from kdkit_ecg.report import class_table, ecg_sections, paper

NAME = "student"


def recipe(**options):
    student = Net(NAME, LRHNet(leads=3), view=Leads(3))
    stage = Stage({student: Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1, batch_size=8))
    return Recipe(data=Synthetic(train=16, validation=8, test=16, length=500, **options), schedule=[stage])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ecg") / "run"
    kdkit.run(recipe, out=folder, device="cpu")
    return folder


def page(run, tmp_path):
    write_report([run], tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_the_twelve_worst_records_are_shown_with_labels_and_probabilities(run, tmp_path):
    html = page(run, tmp_path)
    assert html.count('<figure class="ecg">') == html.count('aria-label="ECG of twelve leads"') == 12
    test = read_net_report(run, NAME).test
    losses = functional.binary_cross_entropy_with_logits(
        torch.from_numpy(test.outputs), torch.from_numpy(test.labels), reduction="none"
    )
    worst = test.ids[losses.mean(1).argsort(descending=True)[:12].numpy()]
    assert re.findall(r"<b>Record (\d+)</b>", html) == [str(id) for id in worst]
    # the first label of the worst record, with its probability
    row = test.ids.tolist().index(worst[0])
    label = int(test.labels[row].argmax())
    probability = 100 / (1 + np.exp(-test.outputs[row, label]))
    table = html.split("<table>")[-12]
    assert re.search(rf'{test.classes[label]}</th><td>yes</td><td class="number \w+">{probability:.0f} %', table)


def test_a_record_of_exactly_one_class_has_the_probabilities_of_the_softmax(run, tmp_path):
    [read] = write_report([run], tmp_path / "report.html").runs
    test = read.reports[NAME].test
    outputs = np.zeros_like(test.outputs)
    outputs[:, 1] = np.log(69.0)  # of 24 classes
    one = replace(read.reports[NAME], test=replace(test, labels=np.full(len(outputs), 2), outputs=outputs))
    html = str(class_table(replace(read, reports={NAME: one}), int(test.ids[0])))
    cells = re.findall(r'"row">(.*?)</th><td>(\w+)</td><td class="number (\w+)">(.*?)</td>', html)
    assert cells == [(test.classes[1], "no", "wrong", "75 %"), (test.classes[2], "yes", "wrong", "1 %")]


def test_an_unknown_label_is_neither_right_nor_wrong(run, tmp_path):
    [read] = write_report([run], tmp_path / "report.html").runs
    test = read.reports[NAME].test
    labels, outputs = np.zeros_like(test.labels), np.full_like(test.outputs, -5.0)
    labels[:, 1], outputs[:, 1] = np.nan, 5.0
    unknown = replace(read.reports[NAME], test=replace(test, labels=labels, outputs=outputs))
    html = str(class_table(replace(read, reports={NAME: unknown}), int(test.ids[0])))
    cells = re.findall(r'"row">(.*?)</th><td>(\w+)</td><td class="(.*?)">(.*?)</td>', html)
    assert cells == [(test.classes[1], "unknown", "number ", "99 %")]


def test_a_network_without_some_classes_has_its_probabilities_at_the_names_of_the_others(run, tmp_path):
    [read] = write_report([run], tmp_path / "report.html").runs
    test = read.reports[NAME].test
    columns = np.flatnonzero(test.outputs[0] > 0)[2:0:-1]  # shown, and neither the first ones nor in order
    few = replace(
        test,
        labels=test.labels[:, columns],
        outputs=test.outputs[:, columns],
        classes=tuple(test.classes[column] for column in columns),
    )
    reports = {"few\x1b": replace(read.reports[NAME], test=few), **read.reports}
    metrics = replace(read.metrics, results={"few\x1b": {}, **read.metrics.results})
    html = str(class_table(replace(read, reports=reports, metrics=metrics), int(test.ids[0])))
    rows = re.findall(
        r'"row">(.*?)</th><td>\w+</td><td class="number ?\w*">(.*?)</td><td class="number \w+">(.*?)</td>', html
    )
    assert {name for name, *_ in rows} > set(few.classes)
    assert '<th scope="col" class="number">few\\x1b</th>' in html
    for name, of_few, of_all in rows:
        assert of_few == (of_all if name in few.classes else DASH)


def test_names_are_escaped(run, tmp_path):
    copies = [tmp_path / "<b>first", tmp_path / "<b>second"]
    for copy in copies:
        shutil.copytree(run, copy)
    write_report(copies, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count('<figure class="ecg">') == 24
    assert "&lt;b&gt;second</b> <span>5 s at 100 Hz" in html
    assert "<b>second" not in html


def test_records_are_shown_by_their_names_which_are_escaped(tmp_path):
    def named():
        made = recipe()
        names = [f"JS{row:05}<b>\x1b\u202e" for row in range(len(made.data.test))]
        made.data.__dict__["test"] = replace(made.data.test, names=names)
        return made

    kdkit.run(named, out=tmp_path / "run", device="cpu", measure=False)
    html = page(tmp_path / "run", tmp_path)
    test = read_net_report(tmp_path / "run", NAME).test
    (run,) = write_report([tmp_path / "run"], tmp_path / "report.html").runs
    rows = [test.ids.tolist().index(id) for id in run.samples["ids"].tolist()]
    shown = re.findall(r"<figcaption><b>Record (\S+)</b>", html)
    assert shown == [f"JS{row:05}&lt;b&gt;\\x1b\\u202e" for row in rows]


def test_signals_that_are_not_in_mv_are_named(tmp_path):
    kdkit.run(lambda: recipe(scaling="zscore"), out=tmp_path / "run", device="cpu")
    html = page(tmp_path / "run", tmp_path)
    assert "scaled to variance 1 by lead, 10 mm for 4 standard deviations" in html
    assert "h1v-10h5v10h1" not in html  # no calibration of 1 mV


def test_damaged_samples_are_named_and_the_rest_of_the_report_is_written(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "samples.safetensors").write_bytes((copy / "samples.safetensors").read_bytes()[:-100])
    html = page(copy, tmp_path)
    assert "samples.safetensors cannot be read: its checksum does not match" in html
    assert '<figure class="ecg">' not in html


@pytest.mark.parametrize(
    "changed",
    [
        {SIGNAL: torch.zeros(12, 12, 4)},
        {SIGNAL: torch.zeros(12, 3, 99)},
        {RATE: torch.zeros(12)},
        {RATE: torch.ones(12, 2)},
    ],
)
def test_samples_that_no_run_saves_are_not_shown(run, changed, tmp_path):
    report = write_report([run], tmp_path / "report.html")
    runs = [replace(run, samples={**run.samples, **changed}) for run in report.runs]
    assert ecg_sections(replace(report, runs=tuple(runs))) == []


def test_a_line_has_the_scale_of_the_paper():
    signal = np.zeros((12, 1000), np.float32)
    signal[1, 500] = 1  # mV of lead II, 5 s after the start
    drawing = str(paper(signal, rate=100))
    rhythm = re.findall(r'd="M([^"]*)"', drawing)[-1].split("L")
    across, middle = map(float, rhythm[0].split())
    assert rhythm[500] == f"{across + 125:.2f} {middle - 10:.2f}"
    assert "width:260mm" in drawing  # 10 mm for the pulse, and 10 s at 25 mm/s


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_no_signal_leaves_its_row_or_makes_an_invalid_path(value):
    signal = np.full((12, 300), value, np.float32)
    numbers = [
        float(number)
        for path in re.findall(r'd="M([^"]*)"', str(paper(signal, 100)))
        for number in re.findall(r"[-\d.]+|nan|inf", path.split("h1v")[0])
    ]
    assert all(np.isfinite(numbers))
    assert min(numbers) >= -15


def test_the_peaks_of_a_long_record_are_kept():
    signal = np.zeros((12, 60_000), np.float32)
    signal[1, 31_234] = 1
    drawing = str(paper(signal, rate=500))
    rhythm = re.findall(r'd="M([^"]*)"', drawing)[-1].split("L")
    heights = [float(point.split()[1]) for point in rhythm]
    assert max(heights) - min(heights) == pytest.approx(10)
    assert len(rhythm) <= 4000
