"""A Distiller trains in Lightning, Hugging Face's Trainer, Accelerate and timm's loop as it does in a bare one."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Distiller, Match, Net, Tap, Truth
from kdkit.losses import Hint, Masked, SoftTargets
from tests.helpers.tiny import Mlp

ROWS, SIZE, EPOCHS = 24, 8, 2
SAMPLES = TensorDataset(
    torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0)), torch.arange(ROWS) % 3
)  # read in order, so that each loop trains on the same batches


def distiller():
    torch.manual_seed(0)
    teacher, student = Net("teacher", Mlp(hidden=7), trained=True), Net("student", Mlp(hidden=5))
    hint = Match(teacher, Hint(), student=Tap(student.module.norm), target=Tap(teacher.module.norm))
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + 0.1 * hint
    return Distiller(student, objective, SAMPLES[:SIZE])


@pytest.fixture(scope="module")
def expected():
    """The student of a bare loop."""
    module = distiller()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for _ in range(EPOCHS):
        for inputs, labels in DataLoader(SAMPLES, SIZE):
            optimizer.zero_grad()
            module(inputs, labels).loss.backward()
            optimizer.step()
    return copy.deepcopy(module.student_state_dict())


def require_same(module, expected):
    for key, value in module.student_state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)


@pytest.mark.filterwarnings("default")  # those of the framework
def test_lightning_trains_it_and_its_checkpoint_holds_no_teacher(expected, tmp_path):
    import lightning  # late: it takes seconds

    class Distillation(lightning.LightningModule):
        def __init__(self, distiller):
            super().__init__()
            self.distiller = distiller

        def training_step(self, batch, _index):
            loss, terms, _ = self.distiller(*batch)
            self.log_dict(terms)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.distiller.parameters(), lr=0.1)

    module = distiller()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(Distillation(module), DataLoader(SAMPLES, SIZE))
    require_same(module, expected)
    (file,) = tmp_path.rglob("*.ckpt")
    keys = torch.load(file, weights_only=True)["state_dict"].keys()
    assert keys == {f"distiller.{key}" for key in module.state_dict()}
    assert sum(key.endswith("hidden.weight") for key in keys) == 1  # of the student alone
    loaded = Net("student", Mlp(), weights=file)  # which is found next to the projector
    require_same(module, loaded.network.state_dict())
    assert "the prefix 'distiller.module.nets.0.' is removed" in loaded.weights_note


def test_accelerate_trains_it(expected):
    import accelerate  # late: it takes seconds

    accelerator = accelerate.Accelerator(cpu=True)
    module = distiller()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    prepared, optimizer, loader = accelerator.prepare(module, optimizer, DataLoader(SAMPLES, SIZE))
    prepared.train()
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(prepared(inputs, labels).loss)
            optimizer.step()
    require_same(accelerator.unwrap_model(prepared), expected)


def test_timms_optimizer_scheduler_and_meters_work_around_it(expected):
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    module = distiller()
    optimizer = create_optimizer_v2(module, opt="momentum", lr=0.1, momentum=0.0, weight_decay=0.0)
    scheduler, _ = create_scheduler_v2(optimizer, sched="step", num_epochs=EPOCHS, decay_epochs=EPOCHS)
    module.train()
    for epoch in range(EPOCHS):
        losses = AverageMeter()
        for inputs, labels in DataLoader(SAMPLES, SIZE):
            optimizer.zero_grad()
            loss = module(inputs, labels).loss
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(labels))
        scheduler.step(epoch + 1, losses.avg)
    require_same(module, expected)


@pytest.mark.filterwarnings("default")
def test_hugging_faces_trainer_distils_a_transformer_on_texts_of_different_lengths(tmp_path):
    import transformers  # late: it takes seconds

    class DistillationTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            loss, _, logits = model(inputs, labels)
            return (loss, {"logits": logits}) if return_outputs else loss

    def bert(layers, width):
        config = transformers.BertConfig(
            vocab_size=30,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=3,
            attn_implementation="eager",
        )
        return transformers.BertForSequenceClassification(config)

    torch.manual_seed(0)
    lengths = [3 + row % 5 for row in range(ROWS)]
    texts = [{"input_ids": torch.randint(1, 30, (length,)), "labels": row % 3} for row, length in enumerate(lengths)]

    def collate(rows):
        ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    teacher = Net("teacher", bert(2, 16), element="logits", trained=True)
    student = Net("student", bert(1, 8), element="logits")
    hidden = Match(
        teacher,
        Masked(Hint()),
        student=Tap(student.module.bert.embeddings, channels_last=True),
        target=Tap(teacher.module.bert.embeddings, channels_last=True),
    )
    example = collate(texts[:SIZE])
    labels = example.pop("labels")
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + 0.1 * hidden
    module = Distiller(student, objective, (example, labels))
    before, frozen = copy.deepcopy(module.student_state_dict()), copy.deepcopy(teacher.module.state_dict())
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        num_train_epochs=2,
        per_device_train_batch_size=SIZE,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-2,
        save_strategy="no",
    )
    trainer = DistillationTrainer(module, arguments, data_collator=collate, train_dataset=texts, eval_dataset=texts)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    after = module.student_state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    assert all(torch.equal(frozen[key], value) for key, value in teacher.module.state_dict().items())
    bert(1, 8).load_state_dict(after)


@pytest.mark.filterwarnings("default")
def test_the_trainer_of_the_page_takes_the_mean_over_all_tokens_of_an_update(tmp_path):
    import transformers  # late: it takes seconds

    page = (Path(__file__).parents[3] / "docs" / "own-loop.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python notest\n(.+?)```", page, re.S) if "TokenTrainer" in block)
    exec(code, scope := {"transformers": transformers})
    lengths = [1, 2, 5, 9]
    texts = [{"inputs": torch.arange(9) + row, "labels": length} for row, length in enumerate(lengths)]

    def collate(rows):
        labels = nn.utils.rnn.pad_sequence([row["inputs"][: row["labels"]] + 1 for row in rows], batch_first=True)
        labels = nn.functional.pad(labels, (0, 9 - labels.shape[1]))
        return {"input": torch.stack([row["inputs"] for row in rows]), "labels": labels.masked_fill(labels == 0, -100)}

    weights = []
    for batch_size in (4, 1):
        torch.manual_seed(0)
        teacher, student = Net("teacher", nn.Embedding(12, 13), trained=True), Net("student", nn.Embedding(12, 13))
        example = collate(texts)
        objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
        module = Distiller(student, objective, ({"input": example["input"]}, example["labels"]))
        arguments = transformers.TrainingArguments(
            output_dir=tmp_path,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            learning_rate=1.0,
            max_grad_norm=0.0,
            optim="sgd",
            lr_scheduler_type="constant",
            save_strategy="no",
        )
        scope["TokenTrainer"](module, arguments, data_collator=collate, train_dataset=texts).train()
        weights.append(student.module.weight.detach())
    torch.testing.assert_close(*weights)
