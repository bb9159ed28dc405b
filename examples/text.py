"""Tag the tokens of texts: a small transformer learns from a large one, token by token, by hidden states and attention.

The texts are sequences of numbers of different lengths. The tag of a token is the sum of it and the token before it,
modulo 4, so a network must attend to its neighbours. Both networks are models of Hugging Face transformers (`pip
install transformers`), created from a config without a download. Padding has the label -100 and the mask 0, so it
does not count in terms or metrics. A run takes about half a minute on two cores.

    kdkit run examples/text.py
    kdkit run examples/text.py --hidden 0 --attention 0
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import kdkit
from kdkit import AttentionTap, Match, Net, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import Hint, Masked, SoftTargets

WORDS, TAGS, LONGEST = 16, 4, 24
PADDING = -100  # the label that losses of torch and kdkit ignore

Text = tuple[Tensor, Tensor]  # words and tags, (length,) each


def texts(count: int, seed: int) -> list[Text]:
    """Return texts of 6 to 24 words with a tag for each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, LONGEST + 1, (count,), generator=generator).tolist()
    words = [torch.randint(1, WORDS, (length,), generator=generator) for length in lengths]
    return [(text, (text + text.roll(1)) % TAGS) for text in words]


def pad(batch: list[Text]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the arguments of the networks as a dict, and the labels, (batch, tokens)."""
    words = pad_sequence([text for text, _ in batch], batch_first=True)
    tags = pad_sequence([labels for _, labels in batch], batch_first=True, padding_value=PADDING)
    return {"input_ids": words, "attention_mask": (words > 0).long()}, tags


def tagger(width: int, layers: int) -> Any:
    """Return a BERT that gives (batch, tokens, tags)."""
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(  # type: ignore[call-arg]  # num_labels is an option of its base class
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=LONGEST,
        num_labels=TAGS,
    )
    return BertForTokenClassification(config)


def recipe(hidden: float = 0.5, attention: float = 10.0, count: int = 1500, epochs: int = 10) -> kdkit.Recipe:
    """Return the experiment.

    hidden: weight of the hidden states of the last layer.
    attention: weight of the attention maps of the last layer.
    count: number of training texts.
    epochs: number of epochs of each stage.
    """
    large, small = tagger(64, 2), tagger(32, 1)
    teacher, student = Net("teacher", large), Net("student", small)
    truth = Truth(nn.CrossEntropyLoss(ignore_index=PADDING))
    last, first = large.bert.encoder.layer[-1], small.bert.encoder.layer[-1]
    # A projector maps 32 channels to 64. The map of a head is (tokens, tokens), and both networks have four heads.
    states = Match(teacher, Masked(Hint()), label="hidden states", student=Tap(first), target=Tap(last))
    maps = Match(
        teacher,
        Masked(nn.MSELoss()),  # at pairs of tokens that are not padding
        label="attention",
        student=AttentionTap(first.attention.self),
        target=AttentionTap(last.attention.self),
    )
    training = Training(epochs=epochs, batch_size=32, optimizer=kdkit.Optimizer(torch.optim.AdamW, lr=2e-3))
    tags = [f"tag {tag}" for tag in range(TAGS)]
    return kdkit.Recipe(
        data=TorchData(texts(count, 0), texts(300, 1), texts(300, 2), classes=tags, collate_fn=pad),
        schedule=[
            Stage({teacher: truth}, training),
            Stage({student: truth + Match(teacher, SoftTargets()) + hidden * states + attention * maps}, training),
        ],
    )
