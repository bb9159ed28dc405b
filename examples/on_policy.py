"""Distil a language model on texts that it writes itself (GKD): `python examples/on_policy.py`.

A text has six digits, a separator, and the six digits sorted. The teacher is trained on such texts. The student learns
from the teacher's probabilities. With probability `lmbda`, a batch has completions that the student has just written
instead of the correct ones, so the teacher rates the student's own mistakes. Both models are tiny Llamas of Hugging
Face transformers (`pip install transformers`), without a download. It takes half a minute on two cores.

Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models", arXiv:2306.13649, algorithm 1
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kdkit import Distiller, Match, Net
from kdkit.losses import GeneralisedJSD

DIGITS, LENGTH = 10, 6
PROMPT = LENGTH + 1  # the digits and the separator, which is the token 10


def texts(count: int, seed: int) -> Tensor:
    """Return texts, (count, 13): digits, the separator, and the digits sorted."""
    digits = torch.randint(0, DIGITS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return torch.cat([digits, torch.full((count, 1), DIGITS), digits.sort(1).values], 1)


def next_tokens(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and labels, (batch, 12) each: the label of a token is the next one, and prompts have none."""
    labels = batch[:, 1:].clone()
    labels[:, : PROMPT - 1] = -100
    return batch[:, :-1], labels


def complete(model: Any, prompts: Tensor, *, sample: bool) -> Tensor:
    """Return the prompts with the completions that a model writes, (batch, 13): samples, or the most likely tokens."""
    model.eval()
    with torch.no_grad():
        written: Tensor = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            min_new_tokens=LENGTH,
            max_new_tokens=LENGTH,
            do_sample=sample,
        )
    model.train()
    return written


def language_model(width: int, layers: int) -> Any:
    """Return a Llama that gives (batch, tokens, 11)."""
    config = LlamaConfig(
        vocab_size=DIGITS + 1,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=PROMPT + LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(module: nn.Module, data: Tensor, loss_of: Callable[[Tensor], Tensor], epochs: int) -> None:
    """Train a module with AdamW on the loss of each batch of texts."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.split(data[torch.randperm(len(data))], 64):
            optimizer.zero_grad()
            loss_of(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()


def train_teacher(data: Tensor, epochs: int) -> Any:
    """Return a model that is trained on texts."""
    model = language_model(64, 2)

    def cross_entropy(batch: Tensor) -> Tensor:
        inputs, labels = next_tokens(batch)
        return nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), labels.flatten())

    train(model, data, cross_entropy, epochs)
    return model


def distil(large: Any, data: Tensor, *, lmbda: float, epochs: int) -> Any:
    """Return a smaller model that has learned from a large one. lmbda: the share of batches that it writes itself."""
    teacher, student = Net("teacher", large, trained=True), Net("student", language_model(32, 1))
    # The labels only select the tokens that are compared. beta: 0 is the forward divergence, 1 the reverse one.
    objective = Match(teacher, GeneralisedJSD(beta=0.5))
    with Distiller(student, objective, example=next_tokens(data[:4])) as distiller:

        def divergence(batch: Tensor) -> Tensor:
            if torch.rand(()) < lmbda:
                batch = complete(student.module, batch[:, :PROMPT], sample=True)
            loss: Tensor = distiller(*next_tokens(batch)).loss
            return loss

        train(distiller, data, divergence, epochs)
    return student.module


def accuracy(model: Any, unseen: Tensor) -> float:
    """Return the share of texts that a model completes without any mistake."""
    return (complete(model, unseen[:, :PROMPT], sample=False) == unseen).all(1).float().mean().item()


def main(count: int = 3000, epochs: int = 12, seed: int = 0) -> None:
    """Train a teacher, and students off-policy (0) and on-policy (1); print how many unseen texts each completes."""
    torch.manual_seed(seed)
    unseen = texts(500, seed=1)
    large = train_teacher(texts(count, seed=0), epochs)
    print(f"teacher             accuracy {accuracy(large, unseen):.3f}")
    for lmbda in (0.0, 0.5, 1.0):
        torch.manual_seed(seed)  # all students begin with the same weights
        small = distil(large, texts(count // 3, seed=0), lmbda=lmbda, epochs=epochs)
        print(f"student  lmbda={lmbda}  accuracy {accuracy(small, unseen):.3f}")


if __name__ == "__main__":
    main()
