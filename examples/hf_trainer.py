"""Distil in the Trainer of Hugging Face: `pip install transformers accelerate`, then `python examples/hf_trainer.py`.

A Distiller takes the place of the model, and `DistillationTrainer` computes the loss with it. Texts have different
lengths: `Masked` compares the hidden states of tokens, not of the padding.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from kdkit import Distiller, Match, Net, Tap, Truth
from kdkit.losses import Hint, Masked, SoftTargets

WORDS, LONGEST = 12, 16


class DistillationTrainer(Trainer):
    """A Trainer whose model is a Distiller."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, and the student's outputs for metrics."""
        labels = inputs.pop("labels")
        loss, _, logits = model(inputs, labels)
        return (loss, {"logits": logits}) if return_outputs else loss


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Return texts of 5 to 16 words; the class is whether a word of the lower half comes first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, LONGEST + 1, (count,), generator=generator).tolist()
    words = [torch.randint(1, WORDS, (length,), generator=generator) for length in lengths]
    return [{"input_ids": text, "labels": int(text[0] < WORDS // 2)} for text in words]


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad texts with the word 0."""
    words = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    labels = torch.tensor([sample["labels"] for sample in samples])
    return {"input_ids": words, "attention_mask": (words > 0).long(), "labels": labels}


def classifier(width: int, layers: int) -> Any:
    """Return a BERT that gives (batch, classes)."""
    config = BertConfig(  # type: ignore[call-arg]  # num_labels is an option of its base class
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=LONGEST,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def train(model: nn.Module, trainer_class: type[Trainer], folder: str, epochs: int) -> None:
    """Train a model."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,  # the signature of a Distiller does not name the inputs of its networks
    )
    trainer_class(model, arguments, data_collator=collate, train_dataset=texts(640, 0)).train()


def main() -> None:
    """Train a teacher, distil it into a student, and print the accuracy of both on unseen texts."""
    torch.manual_seed(0)
    large, small = classifier(32, 2), classifier(16, 1)
    with tempfile.TemporaryDirectory() as folder:
        train(large, Trainer, folder, epochs=5)

        teacher, student = Net("teacher", large, trained=True), Net("student", small)
        first, last = Tap(small.bert.encoder.layer[-1]), Tap(large.bert.encoder.layer[-1])
        states = Match(teacher, Masked(Hint()), student=first, target=last)  # with a projector from 16 channels to 32
        objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + 0.1 * states
        batch = collate(texts(8, 0))
        labels = batch.pop("labels")
        with Distiller(student, objective, example=(batch, labels)) as distiller:
            train(distiller, DistillationTrainer, folder, epochs=10)

    unseen = collate(texts(400, 1))
    labels = unseen.pop("labels")
    for name, model in (("teacher", large), ("student", small)):
        with torch.no_grad():
            accuracy = (model.eval()(**unseen).logits.argmax(1) == labels).float().mean()
        print(f"{name:8} {sum(p.numel() for p in model.parameters()):7,} parameters  accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
