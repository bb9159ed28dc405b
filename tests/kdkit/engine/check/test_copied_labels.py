"""A notice if a language model would learn to repeat the token that it reads."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Distiller, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import PerToken, SoftTargets

WORDS = 12
TOKENS = torch.randint(1, WORDS, (8, 6), generator=torch.Generator().manual_seed(0))
ADVICE = "labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)"


class Model(nn.Module):
    """A model as those of transformers, which shifts labels for the loss that it computes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, WORDS)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.embed(input_ids))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"logits": logits, "loss": loss}


def shifted(labels):
    return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def truth():
    return Truth(nn.CrossEntropyLoss())


def notices(samples, objective=None, validation=None, model=Model):
    """Return the notices of a recipe with these pairs (inputs, labels), and with a term on the labels by default.

    validation: by default, the samples.
    """
    validation = samples if validation is None else validation
    data = TorchData(samples, validation, task="multiclass", classes=[str(word) for word in range(WORDS)])
    student = Net("student", model())
    stage = Stage({student: truth() if objective is None else objective(student)}, Training(epochs=1, batch_size=4))
    plan = kdkit.check(Recipe(data=data, schedule=[stage]))
    assert plan.problems == ()
    return plan.notices


def batches(inputs, labels):
    return DataLoader([({**inputs, "input_ids": row}, label) for row, label in zip(TOKENS, labels, strict=True)], 4)


def test_labels_of_the_validation_data_that_are_the_inputs_are_noticed():
    right, wrong = TensorDataset(TOKENS, shifted(TOKENS)), TensorDataset(TOKENS, TOKENS)
    (notice,) = notices(right, validation=wrong)
    assert notice.startswith("the labels of the validation data are its input tokens, unlike those of training")
    assert ADVICE in notice
    (notice,) = notices(wrong, validation=right)
    assert notice.startswith("the labels are the input tokens")
    assert not notices(right, validation=right)


def test_labels_that_are_the_inputs_are_noticed_with_the_line_that_shifts_them():
    (notice,) = notices(TensorDataset(TOKENS, TOKENS))
    assert notice.startswith(
        "the labels are the input tokens, so term 'truth' trains net 'student' to repeat the token"
    )
    assert ADVICE in notice
    labels = TOKENS
    exec(ADVICE, {"nn": nn}, names := {"labels": labels})
    assert torch.equal(names["labels"], shifted(TOKENS))
    assert notices(TensorDataset(TOKENS, shifted(TOKENS))) == ()


def test_padding_and_a_mask_do_not_hide_the_inputs():
    labels = TOKENS.clone()
    labels[:, 4:] = -100
    mask = torch.ones(6, dtype=torch.long)
    assert len(notices(batches({"attention_mask": mask}, labels))) == 1


class Decoder(Model):
    """A model whose outputs are those of the tokens before the labels."""

    def forward(self, input_ids, decoder_input_ids):
        return super().forward(decoder_input_ids)


def test_a_decoder_must_read_the_labels_shifted_to_the_right_but_labels_may_equal_the_source_text():
    def samples(decoder_inputs, labels=TOKENS):
        rows = zip(TOKENS, decoder_inputs, labels, strict=True)
        return [({"input_ids": row, "decoder_input_ids": read}, label) for row, read, label in rows]

    read = nn.functional.pad(TOKENS[:, :-1], (1, 0))
    right = samples(read)
    assert notices(right, model=Decoder) == ()
    for wrong in (samples(TOKENS), samples(read, shifted(TOKENS))):
        (notice,) = notices(wrong, model=Decoder)
        assert notice.startswith("the decoder_input_ids are not the labels shifted to the right: only ")
        (notice,) = notices(right, validation=wrong, model=Decoder)
        assert notice.startswith("the validation data's decoder_input_ids are not the labels")


def test_a_masked_language_model_and_other_labels_are_not_noticed():
    is_masked = torch.arange(6) % 2 == 0
    assert notices(TensorDataset(TOKENS.masked_fill(is_masked, 0), TOKENS.masked_fill(~is_masked, -100))) == ()
    assert notices(TensorDataset(TOKENS, TOKENS % 3)) == ()
    assert notices(TensorDataset(TOKENS, torch.full_like(TOKENS, -100))) == ()


def test_a_loss_that_the_model_computes_shifts_by_itself():
    def own(student):
        return Truth(kdkit.model_loss, student=Tap(student.module, element="loss"))

    samples = [({"input_ids": row, "labels": row}, label) for row, label in zip(TOKENS, shifted(TOKENS), strict=True)]
    assert notices(samples, own) == ()
    # Its metrics are computed from the labels next to the inputs, which nothing shifts.
    samples = [({"input_ids": row, "labels": row}, row) for row in TOKENS]
    (notice,) = notices(samples, own)
    assert "metrics compare the output at a token with its own label" in notice
    student = Net("student", Model())
    inputs = {"input_ids": TOKENS, "labels": TOKENS}
    with warnings.catch_warnings(), Distiller(student, own(student), example=(inputs, TOKENS)):
        pass


def test_a_distiller_warns():
    student, teacher = Net("student", Model()), Net("teacher", Model(), trained=True)
    soft = Match(teacher, PerToken(SoftTargets()))
    classes = [str(word) for word in range(WORDS)]
    with (
        pytest.warns(UserWarning, match="term 'truth' trains net 'student' to repeat"),
        Distiller(student, truth() + soft, example=(TOKENS, TOKENS), classes=classes),
    ):
        pass
    # It compares the networks with each other, and the labels only select tokens.
    with Distiller(student, soft, example=(TOKENS, TOKENS), classes=classes):
        pass
