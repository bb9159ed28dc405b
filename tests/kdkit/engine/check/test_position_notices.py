"""A check gives notices about positions: padding, frames, and their labels."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import BartConfig, BartForConditionalGeneration

from kdkit import (
    Distiller,
    Inputs,
    Match,
    Net,
    Recipe,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    check,
)
from kdkit.losses import (
    CKA,
    Hint,
    IgnoreUnknown,
    Masked,
    PerLabelSoftTargets,
    PerPosition,
    SoftTargets,
)
from tests.helpers.tiny import one_stage, plain_goal


def ctc(outputs, labels):
    """A loss of a user: labels are sequences, padded with -100 to the number of frames."""
    frames = torch.full((len(labels),), labels.shape[1])
    log_probs = outputs.log_softmax(1).permute(2, 0, 1)
    return nn.functional.ctc_loss(log_probs, labels.clamp(min=0), frames, (labels >= 0).sum(1))


@pytest.mark.parametrize(
    ("truth", "loss", "notices"),
    [
        (ctc, SoftTargets(), 1),
        (ctc, PerPosition(SoftTargets(), ignore_index=None), 0),
        (ctc, Masked(SoftTargets(), mask=lambda inputs: inputs[:, 0] < 9), 0),
        (nn.CrossEntropyLoss(), SoftTargets(), 0),
    ],
)
def test_frames_that_are_compared_by_the_labels_of_ctc_are_a_notice(truth, loss, notices):
    labels = torch.full((8, 6), -100)
    labels[:, :2] = torch.randint(1, 3, (8, 2))
    data = TensorDataset(torch.randn(8, 2, 6), labels)
    teacher, student = (Net(name, nn.Conv1d(2, 3, 1), trained=True) for name in ("teacher", "student"))
    stage = Stage({student: Truth(truth) + Match(teacher, loss)}, Training(epochs=1))
    plan = check(Recipe(data=TorchData(data, data, classes=["blank", "a", "b"]), schedule=[stage]))
    plan.require()
    assert sum("with CTC the labels are sequences" in notice for notice in plan.notices) == notices
    assert sum("metric 'accuracy', which chooses" in notice for notice in plan.notices) == (truth is ctc)


class Tagger(nn.Module):
    """Gives hidden states, an attention map and logits, with tokens last."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(4, 5, 1), nn.Conv1d(5, 3, 1)
        self.attention = nn.Identity()

    def forward(self, inputs, attention_mask=None):
        hidden = self.body(inputs)
        self.attention((hidden[..., None] * hidden[:, :, None]).softmax(-1))
        return self.head(hidden)


def padding_notices(loss, part=None, padding=2):
    """Return the notices about a term on a part of two taggers, or on their outputs, for texts with padding."""
    mask = (torch.arange(6) < 6 - padding).long().expand(8, 6)
    labels = (torch.arange(48).reshape(8, 6) % 3).masked_fill(mask == 0, -100)
    rows = [
        ({"inputs": row, "attention_mask": kept}, label)
        for row, kept, label in zip(torch.randn(8, 4, 6), mask, labels, strict=True)
    ]
    teacher, student = Net("teacher", Tagger(), trained=True), Net("student", Tagger())
    taps = {"student": Tap(getattr(student.module, part)), "target": Tap(getattr(teacher.module, part))} if part else {}
    plan = check(one_stage(student, plain_goal() + Match(teacher, loss, **taps), TorchData(rows, rows, classes=3)))
    plan.require()
    return plan.notices


def of_the_first_token(student, target):
    return (student[:, :, 0] - target[:, :, 0]).square().mean()


@pytest.mark.parametrize(
    ("loss", "part", "advice"),
    [
        (Hint(), "body", "33% of the tokens of the first samples; Masked(Hint) leaves it out"),
        (nn.MSELoss(), "attention", "Masked(MSELoss) leaves it out"),
        (nn.MSELoss(), None, "PerPosition(MSELoss) leaves it out"),
    ],
)
def test_a_term_that_compares_the_padding_of_texts_is_noticed(loss, part, advice):
    (notice,) = padding_notices(loss, part)
    assert "also compares the padding, " in notice
    assert notice.endswith(advice)
    assert padding_notices(loss, part, padding=0) == ()


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (Masked(Hint()), "body"),
        (Masked(nn.MSELoss()), "attention"),
        (of_the_first_token, "body"),
        (CKA(), "body"),
        (SoftTargets(), None),
        (PerPosition(nn.MSELoss()), None),
    ],
)
def test_a_term_that_leaves_out_the_padding_is_not_noticed(loss, part):
    assert padding_notices(loss, part) == ()


@pytest.mark.parametrize("loss", [Hint(), Masked(Hint(), mask=lambda inputs: inputs["attention_mask"][:, ::4])])
def test_a_term_that_compares_the_padding_of_waveforms_is_noticed(loss):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.frames, self.head = nn.Conv1d(1, 4, 4, 4), nn.Linear(4, 3)

        def forward(self, waves, attention_mask):
            return self.head(self.frames(waves[:, None]).mean(2))

    mask = (torch.arange(16) < 9).long()
    rows = [({"waves": torch.randn(16), "attention_mask": mask}, row % 3) for row in range(8)]
    teacher, student = Net("teacher", Encoder(), trained=True), Net("student", Encoder())
    taps = {"student": Tap(student.module.frames), "target": Tap(teacher.module.frames)}
    recipe = one_stage(student, plain_goal() + Match(teacher, loss, **taps), TorchData(rows, rows, classes=3))
    padding = [notice for notice in check(recipe).notices if "also compares the padding" in notice]
    expected = (
        "44% of the frames of the first samples; Masked(Hint, mask=...) with the mask of the frames leaves it out"
    )
    assert [expected in notice for notice in padding] == ([True] if isinstance(loss, Hint) else [])


def sound_events(labels, loss, **options):
    """Return the plan of a student that learns sound events, (8, classes, frames), from a teacher by a loss."""
    count, frames = labels.shape[1:]
    inputs = {"inputs": torch.randn(8, 4, frames), "mask": ~labels.isnan().all(1)}
    rows = [({name: tensor[row] for name, tensor in inputs.items()}, labels[row]) for row in range(8)]
    nets = [Net(name, nn.Conv1d(4, count, 1), view=Inputs(only=("inputs",)), trained=True) for name in "ts"]
    goal = Truth(IgnoreUnknown(nn.BCEWithLogitsLoss())) + Match(nets[0], loss)
    return check(one_stage(nets[1], goal, TorchData(rows, rows, unknown=float("nan"), **options)))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("loss", [PerLabelSoftTargets(), Masked(PerLabelSoftTargets(), mask="mask")])
def test_a_term_that_compares_frames_in_the_padding_of_labels_is_noticed(loss, padding):
    labels = (torch.arange(8 * 2 * 12).reshape(8, 2, 12) % 3 == 0).float()
    labels[:, :, :2] = torch.nan  # not padding: frames that nobody labelled
    labels[:, :, 12 - padding :] = torch.nan
    notices = [text for text in sound_events(labels, loss, classes=["a", "b"]).notices if "padding" in text]
    expected = (
        "after the last label, 25% of those of the first samples; if they are padding, Masked(PerLabelSoftTargets("
    )
    assert [expected in notice for notice in notices] == [True] * (padding > 0 and not isinstance(loss, Masked))


@pytest.mark.parametrize(("loss", "part"), [(Hint(), "body"), (nn.MSELoss(), None), (SoftTargets(), None)])
@pytest.mark.parametrize("has_mask", [False, True])
def test_a_term_that_compares_features_after_the_last_label_is_noticed(loss, part, has_mask):
    inputs, labels = torch.randn(8, 4, 6), torch.arange(48).reshape(8, 6) % 3
    labels[:, 4:] = -100
    rows = [
        ({"inputs": row} | {"attention_mask": torch.ones(6)} if has_mask else row, label)
        for row, label in zip(inputs, labels, strict=True)
    ]
    teacher, student = Net("teacher", Tagger(), trained=True), Net("student", Tagger())
    taps = {"student": Tap(getattr(student.module, part)), "target": Tap(getattr(teacher.module, part))} if part else {}
    data = TorchData(rows, rows, classes=3)
    notices = check(one_stage(student, plain_goal() + Match(teacher, loss, **taps), data)).notices
    expected = "after the last label, 33% of those of the first samples; if they are padding, Masked("
    assert any(expected in notice for notice in notices) == (not has_mask and not isinstance(loss, SoftTargets))


@pytest.mark.parametrize("missing", [[-1], [1, 3, -2, -1]], ids=["shifted", "masked tokens"])
def test_tokens_without_a_label_that_are_no_padding_are_not_noticed(missing):
    inputs, labels = torch.randn(8, 4, 6), torch.arange(48).reshape(8, 6) % 3
    labels[:, missing] = -100
    teacher, student = Net("teacher", Tagger(), trained=True), Net("student", Tagger())
    data = TorchData(*[TensorDataset(inputs, labels)] * 2, classes=3)
    notices = check(one_stage(student, plain_goal() + Match(teacher, nn.MSELoss()), data)).notices
    assert not any("after the last label" in notice for notice in notices)


@pytest.mark.parametrize(("shape", "classes"), [((12, 2), None), ((2, 12), None), ((12, 2), [*"abcdefghijkl"])])
def test_classes_that_may_be_frames_are_noticed_if_they_have_no_names(shape, classes):
    labels = (torch.arange(8 * 24).reshape(8, *shape) % 3 == 0).float()
    notices = sound_events(labels, PerLabelSoftTargets(), classes=classes).notices
    assert any(
        "taken for 12 classes at 2 positions; if the 2 are the classes, move" in notice for notice in notices
    ) == (shape == (12, 2) and classes is None)


@pytest.mark.parametrize("loss", [PerLabelSoftTargets(), SoftTargets()])
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
def test_outputs_per_position_without_labels_are_not_noticed(loss, conv, recwarn):
    teacher, student = (Net(name, conv(3, 2, 1), channels_last=False, trained=True) for name in "ts")
    inputs = torch.randn(4, 3, *(6,) * (2 if conv is nn.Conv2d else 1))
    task = "multilabel" if isinstance(loss, PerLabelSoftTargets) else "multiclass"
    with Distiller(student, 1.0 * Match(teacher, loss), example=(inputs, None), task=task, classes=2) as distiller:
        assert distiller(inputs, None).loss.isfinite()
    assert not recwarn.list


def bart():
    sizes = {
        f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    config = BartConfig(
        vocab_size=12, d_model=4, max_position_embeddings=8, pad_token_id=0, decoder_start_token_id=3, **sizes
    )
    return BartForConditionalGeneration(config)


def notices_of_decoders(start, term=None, length=6, shift=1):
    """Return the notices about a model with a decoder, for source texts of 4 of 6 tokens and labels of 3 of `length`.

    start: the first token that the decoder reads, before the labels; None for no inputs of the decoder. shift: by how
    much its inputs are the labels shifted to the right.
    """
    tokens, labels = torch.randint(3, 12, (8, 6)), torch.randint(3, 12, (8, length))
    tokens[:, 4:], labels[:, 3:] = 0, -100
    inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
    if start is not None:
        inputs["decoder_input_ids"] = nn.functional.pad(labels, (shift, -shift), value=start).clamp(min=0)
        inputs["decoder_attention_mask"] = (labels >= 0).long()
    rows = [({name: tensor[row] for name, tensor in inputs.items()}, labels[row]) for row in range(8)]
    teacher, student = Net("teacher", bart(), trained=True), Net("student", bart())
    objective = plain_goal() + (0 if term is None else term(teacher, student))
    return check(one_stage(student, objective, TorchData(rows, rows, classes=12))).notices


@pytest.mark.parametrize(
    ("part", "loss", "expected"),
    [
        ("decoder", Masked(Hint()), "'attention_mask' is the mask of the encoder's tokens"),
        ("decoder", Hint(), "also compares positions after the last label, 50% of those"),
        ("decoder", Masked(Hint(), mask="decoder_attention_mask"), None),
        (
            "encoder",
            Masked(Hint(), mask="decoder_attention_mask"),
            "is the mask of the decoder's tokens; pass mask=",
        ),
        ("encoder", Masked(Hint()), None),
        ("encoder", Hint(), "also compares the padding, 33% of the tokens of the first samples; Masked(Hint) leaves"),
    ],
)
def test_the_tokens_of_a_decoder_have_another_mask_than_those_of_the_encoder(part, loss, expected):
    def hint(teacher, student):
        layers = (getattr(net.module.model, part).layers[0] for net in (student, teacher))
        return Match(teacher, loss, **dict(zip(("student", "target"), map(Tap, layers), strict=True)))

    notices = notices_of_decoders(3, hint)
    assert [expected in notice for notice in notices] == ([] if expected is None else [True])


@pytest.mark.parametrize("length", [6, 5])
def test_a_decoder_that_reads_the_source_text_is_noticed(length):
    (notice,) = (text for text in notices_of_decoders(None, length=length) if "decoder" in text)
    assert notice.startswith("net 'student' gets no decoder_input_ids, so its decoder reads input_ids")


def test_decoder_inputs_that_do_not_begin_with_the_start_token_are_noticed():
    (notice,) = notices_of_decoders(4)
    assert notice.startswith(
        "decoder_input_ids begin with the token 4, but net 'student' begins texts with 3, the deco"
    )


def test_decoder_inputs_that_are_shifted_too_far_have_one_notice():
    (notice,) = notices_of_decoders(4, shift=2)
    assert notice.startswith("the decoder_input_ids are not the labels shifted to the right")
    assert "prepare_decoder_input_ids_from_labels or shift_tokens_right of transformers" in notice


def test_a_tagger_whose_decoder_reads_the_source_text_is_not_noticed():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = bart().model, nn.Linear(4, 3)

        def forward(self, input_ids, attention_mask):
            return self.head(self.body(input_ids, attention_mask)[0])

    tokens = torch.randint(3, 12, (8, 6))
    tokens[:, 4:] = 0
    rows = [({"input_ids": row, "attention_mask": (row > 0).long()}, (row % 3).where(row > 0, -100)) for row in tokens]
    teacher, student = Net("teacher", Tagger(), trained=True), Net("student", Tagger())
    layers = (net.module.body.decoder.layers[0] for net in (student, teacher))
    hint = Match(teacher, Masked(Hint()), **dict(zip(("student", "target"), map(Tap, layers), strict=True)))
    assert check(one_stage(student, plain_goal() + hint, TorchData(rows, rows, classes=3))).notices == ()
