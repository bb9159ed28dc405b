"""Classify texts: a small transformer learns the outputs and the hidden states of a large one.

Both networks are models of Hugging Face transformers (`pip install transformers`). Without options, they are small
ones that need no download, and the texts are short made-up reviews. For your own texts, FOLDER has the files train.csv,
validation.csv and test.csv with the columns text and label. The student must have the tokenizer of the teacher. A run
takes about a minute on two cores.

    kdkit run examples/text_classifier.py
    kdkit run examples/text_classifier.py --folder FOLDER --teacher bert-base-uncased --length 128 --epochs 3
    kdkit run examples/text_classifier.py --folder FOLDER --teacher MODEL_FOLDER --fine-tuned --length 128
"""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import StackDataset

import kdkit
from kdkit import Match, Net, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import Hint, Masked, SoftTargets
from kdkit.metrics import Accuracy, MacroF1

SPLITS = ("train", "validation", "test")


class Text(NamedTuple):
    """A text with the name of its class."""

    text: str
    label: str


def recipe(
    folder: Path | None = None,
    teacher: str = "",
    student: str = "",
    fine_tuned: bool = False,
    length: int = 16,
    temperature: float = 2.0,
    hidden: float = 0.1,
    epochs: int = 20,
    learning_rate: float | None = None,
) -> kdkit.Recipe:
    """Return the experiment.

    folder: contains train.csv, validation.csv and test.csv; made-up reviews by default.
    teacher: name or folder of a model of transformers; a BERT of two layers by default.
    student: name or folder of a model with the same tokenizer; a BERT of one layer by default.
    fine_tuned: the teacher classifies these texts already, and is not trained.
    length: tokens per text; longer texts are cut.
    temperature: divides the logits of teacher and student; higher values soften the targets.
    hidden: weight of the hidden states of the last layer.
    epochs: number of epochs of each stage.
    learning_rate: of both networks; by default 5e-5 for a model of transformers, and 2e-3 for a new BERT.
    """
    texts = {split: read_texts(folder, split) for split in SPLITS}
    tokenizer = make_tokenizer(teacher, texts["train"])
    names = sorted({text.label for text in texts["train"]})
    large = make_model(teacher, names, tokenizer, width=64, layers=2, is_trained=fine_tuned)
    classes = [*large.config.id2label.values()]  # in the order of the outputs
    small = make_model(student, classes, tokenizer, width=32, layers=1, is_trained=False)
    samples = [tokenize(tokenizer, texts[split], classes, length) for split in SPLITS]
    teacher_net, student_net = Net("teacher", large, trained=fine_tuned), Net("student", small)
    truth, outputs = Truth(nn.CrossEntropyLoss()), Match(teacher_net, SoftTargets(temperature=temperature))
    # The hidden states of all tokens, without the padding. A projector maps the width of the student to the teacher's.
    states = Match(
        teacher_net,
        Masked(Hint()),
        label="hidden states",
        student=Tap(small.base_model, element="last_hidden_state"),
        target=Tap(large.base_model, element="last_hidden_state"),
    )
    objective = 0.5 * truth + 0.5 * outputs + hidden * states

    def training(model: str) -> Training:
        return Training(
            epochs=epochs,
            batch_size=32,
            optimizer=kdkit.Optimizer(AdamW, lr=learning_rate or (5e-5 if model else 2e-3), weight_decay=0.01),
            lr_schedule=kdkit.LRSchedule("cosine", warmup_epochs=1, interval="update"),
            max_grad_norm=1.0,
        )

    stages = [] if fine_tuned else [Stage({teacher_net: truth}, training(teacher))]
    return kdkit.Recipe(
        data=TorchData(*samples, classes=classes),
        schedule=[*stages, Stage({student_net: objective}, training(student))],
        metrics=(Accuracy(), MacroF1()),
    )


def read_texts(folder: Path | None, split: str) -> list[Text]:
    """Return the texts of a split with their labels."""
    if folder is None:
        return made_up_reviews({"train": 800, "validation": 300, "test": 600}[split], seed=SPLITS.index(split))
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8-sig") as file:
        return [Text(row["text"], row["label"]) for row in csv.DictReader(file)]


def made_up_reviews(count: int, seed: int) -> list[Text]:
    """Return reviews of a film and a play, of which that of the film counts; "not" reverses it."""
    draw = random.Random(seed)
    positive, negative = ("good", "great", "funny", "clever"), ("bad", "dull", "slow", "silly")
    reviews = []
    for _ in range(count):
        clauses, is_positive = [], False
        for subject in ("play", "film"):
            word, negates = draw.choice(positive + negative), draw.random() < 0.4
            clauses.append(f"the {subject} was {'not ' * negates}{word}")
            is_positive = (word in positive) != negates
        draw.shuffle(clauses)
        reviews.append(Text(" and ".join(clauses), "positive" if is_positive else "negative"))
    return reviews


def make_tokenizer(model: str, texts: Sequence[Text]) -> Any:
    """Return the tokenizer of a model of transformers, or one with the words of these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if model:
        return AutoTokenizer.from_pretrained(model)
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        (text.text for text in texts), trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )


def make_model(name: str, classes: Sequence[str], tokenizer: Any, width: int, layers: int, *, is_trained: bool) -> Any:
    """Return a model of transformers with an output for each class, or a new BERT of this size.

    A model that is trained already keeps the classes of its config.
    """
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    options: dict[str, Any] = {
        "id2label": dict(enumerate(classes)),
        "label2id": {label: index for index, label in enumerate(classes)},
    }
    if name:
        return AutoModelForSequenceClassification.from_pretrained(name, **({} if is_trained else options))
    options |= {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    options |= {"vocab_size": len(tokenizer), "num_attention_heads": 4, "pad_token_id": tokenizer.pad_token_id}
    return BertForSequenceClassification(BertConfig(**options))


def tokenize(tokenizer: Any, texts: Sequence[Text], classes: Sequence[str], length: int) -> StackDataset[Any]:
    """Return the arguments of the networks, (texts, length) each, and the class index of each text.

    All texts are padded to one length, so that the outputs of the teacher can be cached.
    """
    unknown = sorted({text.label for text in texts} - {*classes})
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is none of the classes, {', '.join(classes)}")
    tokens = tokenizer(
        [text.text for text in texts], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    columns: dict[str, Any] = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    columns["labels"] = torch.tensor([classes.index(text.label) for text in texts])
    return StackDataset(**columns)
