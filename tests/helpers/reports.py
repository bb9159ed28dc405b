"""Runs for tests of reports, and a parser of their pages."""

from html.parser import HTMLParser
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.report import write_report
from tests.helpers.tiny import CLASSES, FEATURES, Mlp, samples, tiny_data, tiny_net

_VOID = {"meta", "link", "br", "img", "input", "hr"}
_LOSSES = {"multiclass": nn.CrossEntropyLoss, "multilabel": nn.BCEWithLogitsLoss, "regression": nn.MSELoss}


def distillation(task="multiclass", data=None, *, name="", network=Mlp, label="", kd_loss=None):
    """Return a recipe of a teacher and a student that learns from it."""
    loss = _LOSSES[task]()
    teacher = Net("teacher", network(), trained=True)
    student = Net("student", network())
    kd_loss = kd_loss or (SoftTargets(temperature=2) if task == "multiclass" else nn.MSELoss())
    objective = 0.5 * Truth(loss) + 0.5 * Match(teacher, kd_loss, label=label)
    data = data if data is not None else tiny_data(task, rows=24)
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=2, batch_size=4))], name=name)


def without_test_split(task="multilabel"):
    return TorchData(samples(task, 12), samples(task, 30, seed=1), classes=["a", "b", "c"], task=task)


class PerPosition(nn.Module):
    """A network with outputs per position, (batch, classes, positions)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(FEATURES, CLASSES, 1)

    def forward(self, inputs):
        return self.layer(inputs)


def positions():
    random = torch.Generator().manual_seed(0)

    def split(rows):
        labels = torch.randint(CLASSES, (rows, 5), generator=random)
        labels[0, 0] = -100
        return TensorDataset(torch.randn(rows, FEATURES, 5, generator=random), labels)

    return TorchData(split(12), split(8), split(8), classes=["a", "b", "c"])


def run(folder: Path, recipe=distillation, **options) -> Path:
    kdkit.run(recipe, out=folder, **options)
    return folder


def untaught(folder: Path, **options) -> Path:
    """Write a run without any teacher."""
    stage = Stage({tiny_net("student"): Truth(nn.CrossEntropyLoss())}, Training(epochs=1, batch_size=4))
    return run(folder, Recipe(data=tiny_data(rows=12), schedule=[stage]), **options)


class Page(HTMLParser):
    """A parsed page. Raises AssertionError for a tag that is not closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not {"style", "script"} & {*self._open}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All visible text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def panel(self, identifier: str) -> "Page":
        """Return the section of a tab as a page."""
        start = self.html.index(f'<section class="panel" id="{identifier}"')
        following = self.html.find('<section class="panel"', start + 1)
        end = following if following > 0 else self.html.index("</div>\n</main>", start)
        return Page(self.html[start:end])


def report_page(*folders: Path, out: Path) -> Page:
    write_report(folders, out)
    return Page(out.read_text(encoding="utf-8"))
