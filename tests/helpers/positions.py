"""Data with a label for each pixel or token, networks for it, and recipes."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Optimizer, Recipe, Stage, Training

CLASSES = ("sky", "road", "car")
VOID = 255  # the label of a pixel without one


def images(count=24, size=8, *, seed=0, void=True):
    """Images (count, 3, size, size) whose largest channel is the class, and their labels, void in the first row."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, size, size, generator=generator)
    labels = inputs.argmax(1)
    if void:
        labels[:, 0] = VOID
    return TensorDataset(inputs, labels)


def tokens(lengths=(5, 3, 7, 4, 6, 2), *, seed=0):
    """Sequences of integers below 20 of these lengths, as pairs (tokens, labels): the class is the token modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 20, (length,), generator=generator) for length in lengths]
    return [(text, text % 3) for text in texts]


def pad(samples):
    """Collate sequences: padded tokens and a mask as a dict, and labels that are -100 at the padding."""
    texts, labels = zip(*samples, strict=True)
    inputs = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"tokens": inputs, "mask": mask}, padded


def segmenter(classes=3):
    return nn.Conv2d(3, classes, 3, padding=1)


class Tagger(nn.Module):
    """A class per token, (batch, tokens, classes), as of transformers."""

    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens, mask):
        return self.head(self.embed(tokens) * mask[..., None])


def cross_entropy():
    return nn.CrossEntropyLoss(ignore_index=VOID)


def recipe_of(objective, student, data, metrics=(), epochs=1):
    training = Training(epochs=epochs, batch_size=8, optimizer=Optimizer(torch.optim.Adam, lr=0.05))
    return Recipe(data=data, schedule=[Stage({student: objective}, training)], metrics=metrics)


def problems(recipe):
    return "\n".join(kdkit.check(recipe).problems)


def as_rows(outputs, labels, ignored):
    """Return outputs (batch, classes, ...) and labels (batch, ...) of the positions with a label, one by one."""
    kept = labels != ignored
    return torch.stack([outputs[:, index][kept] for index in range(outputs.shape[1])], 1), labels[kept]
