"""Features whose positions differ from batch to batch, as those of padded texts do, are resized to the target's."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit import BuildContext, Match, Net, Recipe, Stage, Tap, TorchData, Training
from kdkit.losses import AB, CWD, FSP, FT, ICKD, MGD, OFD, PAD, PKD, Cosine, Hint, ReviewKD, SquareHead

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=32, ids=True)
PROJECTED = [
    *(make(projector=mode, kind=kind) for make in (Hint, SquareHead) for mode in ("auto", "always")
      for kind in ("linear", "conv", "mlp", "bottleneck")),
    Cosine(), CWD(), PKD(), MGD(), PAD(), FT(), ICKD(),
]  # fmt: skip


@pytest.mark.parametrize("loss", PROJECTED, ids=lambda loss: f"{type(loss).__name__} {loss.projector_mode} {loss.kind}")
@pytest.mark.parametrize("channels", [(6, 6), (6, 9)])
def test_a_loss_that_was_built_for_some_positions_takes_others(loss, channels):
    torch.manual_seed(0)
    loss.build(((4, channels[0], 8),), ((4, channels[1], 8),), CONTEXT, None)
    for positions in ((8, 8), (5, 5), (11, 11), (7, 9)):
        student, target = (torch.randn(4, count, size) for count, size in zip(channels, positions, strict=True))
        student.requires_grad_()
        value = loss(student, target)
        value.backward()
        assert value.isfinite()
        assert student.grad.abs().sum() > 0


def test_review_kd_takes_layers_of_other_sizes_than_the_first_batch():
    loss = ReviewKD(width=4)
    shapes = [((2, 3, size, size), (2, 5, size, size)) for size in (8, 4)]
    loss.build(*(tuple(map(torch.Size, side)) for side in zip(*shapes, strict=True)), CONTEXT, None)
    for extent in (8, 12, 6):
        sides = [tuple(torch.randn(2, c, size, size) for size in (extent, extent // 2)) for c in (3, 5)]
        assert loss(*sides).isfinite()


@pytest.mark.parametrize("loss", [OFD(margin=-0.5), AB()], ids=lambda loss: type(loss).__name__)
def test_losses_before_a_relu_take_features_of_other_sizes_than_the_first_batch(loss):
    loss.build(((2, 3, 8),), ((2, 5, 4),), CONTEXT, None)
    for size in (4, 6):
        assert loss(torch.randn(2, 3, 2 * size), torch.randn(2, 5, size)).isfinite()


def test_fsp_takes_layers_of_other_sizes_than_the_first_batch():
    loss = FSP()
    loss.build((torch.Size((2, 3, 8)), torch.Size((2, 4, 4))), (torch.Size((2, 5, 8)), torch.Size((2, 4, 4))), CONTEXT)
    for size in (4, 6):
        student, target = ((torch.randn(2, count, 2 * size), torch.randn(2, 4, size)) for count in (3, 5))
        assert loss(student, target).isfinite()


class Reader(nn.Module):
    """A convolution over the words of a text."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 3)
        self.mix = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, words):
        return self.head(self.mix(self.embed(words).movedim(-1, 1)).relu().mean(-1))


@pytest.mark.parametrize("loss", [Hint(), Hint(kind="conv"), CWD()])
def test_texts_of_different_lengths_are_distilled_with_a_projector(loss):
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randint(0, 20, (3 + row % 7,), generator=generator), row % 3) for row in range(32)]

    def padded(rows):
        return nn.utils.rnn.pad_sequence([text for text, _ in rows], batch_first=True), torch.tensor(
            [label for _, label in rows]
        )

    teacher, student = Net("teacher", Reader(12), trained=True), Net("student", Reader(6))
    match = Match(teacher, loss, student=Tap(student.module.mix), target=Tap(teacher.module.mix))
    loader = DataLoader(rows, 4, collate_fn=padded)
    data = TorchData(loader, loader, classes=["a", "b", "c"])
    stage = Stage({student: match}, Training(epochs=2, keep="last"))
    history = kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu").history["student"]
    first, last = (next(iter(epoch["terms"].values())) for epoch in history)
    assert last < first
