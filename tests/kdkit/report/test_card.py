"""The model card of a run: its metadata, what it says about runs of each kind, and that it escapes texts from data."""

import json
import re
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from markdown_it import MarkdownIt
from torch import nn

import kdkit
from kdkit import Match, Net, Recipe, Stage, Training, Truth
from kdkit.engine.run_record import hub_name
from kdkit.errors import KdkitError, RunFolderError
from kdkit.losses import SoftTargets
from kdkit.report.card import card_of, write_card
from kdkit.report.runs import ReportedRun
from tests.helpers.positions import CLASSES, images, recipe_of, segmenter
from tests.helpers.reports import distillation, run, untaught, without_test_split
from tests.helpers.tiny import tiny_data, tiny_net

HOSTILE = "a|b`c``d<script>*_[x](y)\u202e\x1b[2J\n# title\n---"


def metadata(card):
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run with a baseline."""
    return run(tmp_path_factory.mktemp("runs") / "run", distillation, baseline=True, device="cpu")


@pytest.fixture(scope="module")
def reported(folder):
    return ReportedRun.read(folder, "run")


@pytest.fixture(scope="module")
def card(reported):
    return card_of(reported)


def test_the_metadata_has_what_the_hub_reads(card, folder):
    values = metadata(card)
    assert values["library_name"] == "kdkit"
    assert "knowledge-distillation" in values["tags"]
    assert "license" not in values
    assert "\n# license: choose one" in card
    assert "base_model" not in values  # the teacher has no name on the hub
    (model,) = values["model-index"]
    (entry,) = model["results"]
    assert entry["dataset"]["split"] == "test"
    stored = json.loads((folder / "metrics.json").read_text())["metrics"]["student"]
    assert {row["type"]: row["value"] for row in entry["metrics"]} == {
        name: result["value"] for name, result in stored.items()
    }
    low, high = entry["metrics"][0]["args"]["interval"]
    assert low <= entry["metrics"][0]["value"] <= high
    assert values["metrics"] == list(stored)


def test_the_card_is_valid_for_the_hub(card):
    from huggingface_hub import ModelCard

    parsed = ModelCard(card)
    assert parsed.data.library_name == "kdkit"
    results = parsed.data.eval_results
    assert [result.metric_type for result in results] == ["accuracy", "macro_f1"]
    assert {result.dataset_split for result in results} == {"test"}
    assert parsed.text.lstrip().startswith("# ")


def test_method_results_and_settings_are_there(card, folder):
    method = section(card, "Method")
    assert "1. `student` learns from the labels and `teacher`." in method
    assert "2. `student-alone` learns from the labels, for comparison." in method
    assert "| `student` | `student` | `teacher/soft_targets` | `teacher` | `SoftTargets(temperature=2" in method
    assert " | 0.5 |" in method
    results = section(card, "Results")
    assert "| `student` | student | 53 |" in results
    (difference, _) = json.loads((folder / "metrics.json").read_text())["differences"]
    assert f"| Accuracy | {difference['value']:+.3g} |" in results
    assert f"| {difference['verdict']} |" in results
    training = section(card, "Training")
    assert f"| version of torch | `{torch.__version__}` |" in training
    assert "| seed | `0` |" in training
    assert "| stage student | `Training(epochs=2, batch_size=4" in training
    assert "weights='1-student/weights.safetensors'" in section(card, "Use")
    unknown = section(card, "What is not known")
    assert "license" in unknown
    assert "The origin of the teacher `teacher`" in unknown
    assert "Whether distillation helped" not in unknown


def test_a_run_without_a_baseline_does_not_know_whether_distillation_helped(tmp_path):
    unknown = section(card_of(ReportedRun.read(run(tmp_path / "run", distillation), "run")), "What is not known")
    assert "Whether distillation helped" in unknown


def test_a_run_without_a_teacher_is_not_called_distilled(tmp_path):
    card = card_of(ReportedRun.read(untaught(tmp_path / "run"), "run"))
    assert metadata(card)["tags"] == ["pytorch", "kdkit"]
    assert "A network that was trained with kdkit." in card


def test_a_run_without_a_test_split_says_so(tmp_path):
    folder = run(tmp_path / "run", lambda: distillation("multilabel", without_test_split()))
    card = card_of(ReportedRun.read(folder, "run"))
    entry = metadata(card)["model-index"][0]["results"][0]
    assert entry["dataset"]["split"] == "validation"
    assert entry["task"] == {"type": "classification", "name": "multi-label classification"}
    assert "there was no test split" in section(card, "What is not known")


class Pretrained(nn.Linear):
    """A network that carries its name on the hub, as models of transformers do."""

    def __init__(self, name):
        super().__init__(4, 3)
        self.config = type("Config", (), {"_name_or_path": name})()


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_task_of_a_network_with_labels_per_pixel_is_segmentation(multilabel, tmp_path):
    def segmentation():
        loss = nn.BCEWithLogitsLoss() if multilabel else nn.CrossEntropyLoss()
        inputs, labels = images(void=False).tensors
        masks = nn.functional.one_hot(labels).movedim(-1, 1).float() if multilabel else labels
        samples = torch.utils.data.TensorDataset(inputs, masks)
        data = kdkit.TorchData(samples, samples, classes=CLASSES, task="multilabel" if multilabel else "multiclass")
        return recipe_of(1.0 * Truth(loss), Net("student", segmenter()), data)

    card = card_of(ReportedRun.read(run(tmp_path / "run", segmentation, device="cpu"), "run"))
    (entry,) = metadata(card)["model-index"][0]["results"]
    assert entry["task"] == {"type": "image-segmentation", "name": "semantic segmentation"}


def test_the_base_model_is_the_teacher(tmp_path):
    def recipe():
        teacher, student = Net("large", Pretrained("org/large-model"), trained=True), tiny_net("student")
        objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
        stage = Stage({student: objective}, Training(epochs=1, batch_size=4))
        return Recipe(data=tiny_data(rows=12), schedule=[stage])

    card = card_of(ReportedRun.read(run(tmp_path / "run", recipe, baseline=True), "run"))
    assert metadata(card)["base_model"] == "org/large-model"
    assert "The origin of the teacher" not in card


def test_hub_names_are_those_of_timm_and_transformers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(Net("net", timm.create_model("resnet18"))) == "timm/resnet18.a1_in1k"
    assert hub_name(Net("net", Pretrained("bert-base-uncased"))) == "bert-base-uncased"
    for name in ("", "/home/me/model", "../model", "a/b/c", 3, None):
        assert hub_name(Net("net", Pretrained(name))) is None
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert hub_name(Net("net", Pretrained("runs/mine"))) is None  # a folder
    assert hub_name(Net("net", nn.Linear(4, 3))) is None


def test_a_model_of_transformers_from_a_configuration_has_no_hub_name():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    assert hub_name(Net("net", BertForSequenceClassification(config))) is None


def test_texts_from_data_are_no_markup(reported):
    record = {
        **reported.record,
        "recipe": HOSTILE,
        "options": {HOSTILE: HOSTILE},
        "notices": [HOSTILE],
        "positives": {HOSTILE: 3},
        "terms": {HOSTILE: [{"label": HOSTILE, "loss": HOSTILE, "student_net": "student", "teacher": HOSTILE}]},
    }
    card = card_of(replace(reported, record=record))
    assert not {"\x1b", "\u202e"} & {*card}
    assert metadata(card)["model-index"][0]["name"].endswith("/student")
    # With everything that the hub renders, HTML too.
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    assert "<script" not in html
    assert "<a " not in html
    assert "<em>" not in html
    titles = ["Method", "Results", "Training", "Use", "What is not known"]
    assert re.findall("<h2>(.*)</h2>", html) == titles
    assert html.count("<h1>") == 1
    for table in html.split("<table>")[1:]:
        rows = table.split("</table>")[0].split("<tr>")[1:]
        assert len({row.count("</td>") + row.count("</th>") for row in rows}) == 1
    assert html.count("a|b`c``d&lt;script&gt;*_[x](y)") >= 8  # whole, as text and as code


@pytest.mark.parametrize("value", [None, 3, -1.5, "", "x", [], [1], [[]], {}, {"a": 1}, {"student": [{"teacher": {}}]}])
def test_a_damaged_record_makes_a_card_or_an_error_of_kdkit(reported, value):
    for key in reported.record:
        damaged = replace(reported, record={**reported.record, key: value})
        try:
            metadata(card_of(damaged))
        except KdkitError:
            continue


def test_a_card_is_not_overwritten(folder, tmp_path):
    out = tmp_path / "README.md"
    write_card(str(folder), str(out))
    with pytest.raises(KdkitError, match="already exists"):
        write_card(folder, out)
    with pytest.raises(KdkitError, match="cannot be written"):
        write_card(folder, out / "card.md")


def test_a_card_needs_one_finished_run(folder, tmp_path):
    with pytest.raises(KdkitError, match="a card describes one run"):
        write_card(folder.parent, tmp_path / "card.md")
    with pytest.raises(RunFolderError, match="holds no run"):
        write_card(tmp_path, tmp_path / "card.md")


def test_the_command_writes_the_card_into_the_run_folder(kdkit_here, tmp_path):
    kdkit.run(distillation, out=tmp_path / "run", device="cpu")
    done = kdkit_here("card", "run")
    assert (done.code, done.out) == (0, "saved to run/README.md\n")
    assert (tmp_path / "run" / "README.md").read_text().startswith("---\n")
    assert kdkit_here("card", "run").code == 2
    assert kdkit_here("card", "run", "--out", "other.md").code == 0
