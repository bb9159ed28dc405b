"""A label for each token: sequences of different lengths, padded, with masks; and perplexity."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Ema, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.engine.storage.predictions import predictions_file, read_predictions
from kdkit.errors import CheckError, DataError, RecipeError
from kdkit.losses import DKD, Hint, Masked, MiniLM, PerToken, ReverseKL, SoftTargets
from kdkit.metrics import Accuracy, BootstrapInterval, CrossEntropy, MacroF1, MeanIoU, Perplexity, TopKAccuracy
from tests.helpers.positions import CLASSES, Tagger, pad, problems, recipe_of, tokens


def test_a_tagger_learns_from_texts_of_different_lengths():
    teacher, student = Net("teacher", Tagger(16), trained=True), Net("student", Tagger())
    loader = DataLoader(tokens(), batch_size=3, collate_fn=pad)
    data = TorchData(loader, loader, classes=CLASSES)
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + Match(teacher, DKD())
    result = kdkit.run(recipe_of(objective, student, data, metrics=(Accuracy(), MacroF1(), MeanIoU())))
    outputs, truth = [], []
    for text, labels in tokens():
        with torch.no_grad():
            outputs.append(student.module.cpu()(text[None], torch.ones_like(text)[None])[0].argmax(1))
        truth.append(labels)
    predicted, truth = torch.cat(outputs), torch.cat(truth)
    values = {name: metric.value for name, metric in result.metrics["student"].items()}
    assert values == pytest.approx(
        {
            "accuracy": accuracy_score(truth, predicted),
            "macro_f1": f1_score(truth, predicted, average="macro"),
            "mean_iou": jaccard_score(truth, predicted, average="macro"),
        }
    )


def test_fewer_labels_than_positions_are_a_problem_that_names_the_padding():
    def unpadded(samples):
        inputs, labels = pad(samples)
        return inputs, labels[:, :2]

    loader = DataLoader(tokens(), batch_size=3, collate_fn=unpadded)
    data = TorchData(loader, loader, classes=CLASSES)
    text = problems(recipe_of(Truth(nn.CrossEntropyLoss()), Net("student", Tagger()), data))
    assert "net 'student' has outputs of shape (batch, 7, 3) for labels of shape (batch, 2); give them" in text
    assert text.endswith("if there are fewer labels, as for CTC, by padding these with the ignore_index")


def next_tokens(*, lengths, seed=0):
    """Texts of these lengths below 20 tokens; the label of a token is the next one, -100 at the last one."""
    return [(text, torch.cat([text[1:], torch.tensor([-100])])) for text, _ in tokens(lengths, seed=seed)]


class NextToken(nn.Module):
    """Logits of 20 tokens, (batch, tokens, 20)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, tokens, mask):
        return self.head(self.embed(tokens))


def test_perplexity_and_loss_of_texts_are_those_of_all_their_tokens(tmp_path):
    torch.manual_seed(0)
    training, held_out = (next_tokens(lengths=lengths) for lengths in ((5, 3, 7, 4), (6, 2, 9, 4, 5)))
    data = TorchData(
        *(DataLoader(texts, batch_size=2, collate_fn=pad) for texts in (training, held_out)),
        classes=[str(token) for token in range(20)],
    )
    student = Net("student", NextToken())
    metrics = (Accuracy(), CrossEntropy(), BootstrapInterval(Perplexity()), TopKAccuracy(3))
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=3, monitor="perplexity", keep="best"))
    recipe = Recipe(data=data, schedule=[stage], metrics=metrics)
    result = kdkit.run(recipe, out=tmp_path / "run")
    values = result.metrics["student"]

    network = student.module.cpu()
    with torch.no_grad():
        logits = torch.cat([network(text[None], None)[0, :-1] for text, _ in held_out]).double()
    labels = torch.cat([labels[:-1] for _, labels in held_out])
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert values["cross_entropy"].value == pytest.approx(loss, rel=1e-6)
    assert values["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-6)
    among_three = (logits.topk(3).indices == labels[:, None]).any(1).double().mean().item()
    assert values["top_3_accuracy"].value == pytest.approx(among_three)
    low, high = values["perplexity"].interval
    assert low < values["perplexity"].value < high

    history = result.history["student"]
    assert min(entry["perplexity"] for entry in history) == pytest.approx(values["perplexity"].value, rel=1e-6)
    assert not any("cross_entropy" in entry for entry in history)  # an epoch computes the monitor alone
    stored = read_predictions(predictions_file(tmp_path / "run" / "1-student", "student", "validation"))
    assert Perplexity().compute(stored).value == values["perplexity"].value
    evaluated = kdkit.evaluate(recipe, tmp_path / "run")
    assert evaluated["perplexity"].value == pytest.approx(values["perplexity"].value)


def test_each_token_counts_once_however_long_its_text_is():
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    samples = tokens((2, 9))
    inputs, labels = pad(samples)
    with kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    with torch.no_grad():
        single = [
            SoftTargets()(*(net.module(text[None], torch.ones_like(text)[None])[0] for net in (student, teacher)))
            for text, _ in samples
        ]
    torch.testing.assert_close(value.detach(), (2 * single[0] + 9 * single[1]) / 11)


def test_the_classes_of_tokens_stay_last_in_a_batch_with_as_many_tokens_as_classes():
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    inputs, labels = pad(tokens((5, 4)))
    square = pad(tokens((3, 3, 2)))
    with kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, labels), classes=CLASSES) as distiller:
        outputs = distiller(*square).outputs
    expected = student.module(square[0]["tokens"], square[0]["mask"]).movedim(-1, 1)
    torch.testing.assert_close(outputs, expected)


def test_a_first_batch_with_as_many_tokens_as_classes_is_refused_until_the_layout_is_known():
    loader = DataLoader(tokens((3, 3, 2)), batch_size=3, collate_fn=pad)
    data = TorchData(loader, loader, classes=CLASSES)
    message = r"outputs \(3, 3, 3\) for labels \(3, 3\), .* pass Net\(\.\.\., channels_last=True\) or False"
    with pytest.raises(CheckError, match=message):
        kdkit.run(recipe_of(Truth(nn.CrossEntropyLoss()), Net("student", Tagger()), data))
    student = Net("student", Tagger(), channels_last=True)
    objective = Truth(nn.CrossEntropyLoss()) + Match(Ema(student), SoftTargets())  # its average has the same layout
    result = kdkit.run(recipe_of(objective, student, data))
    assert 0 <= result.metrics["student"]["accuracy"].value <= 1


def test_per_token_is_accepted_in_a_stage_too():
    inputs, labels = pad(tokens((5, 4)))
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    objective = Match(teacher, PerToken(ReverseKL()), label="wrapped") + Match(teacher, ReverseKL(), label="plain")
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        terms = distiller(inputs, labels).terms
    assert terms["wrapped"] == terms["plain"]


def test_labels_of_tokens_that_are_all_zero_and_one_are_classes_if_the_task_says_so():
    texts = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(texts, texts % 2)
    assert TorchData(data, data).task == "multilabel"
    with pytest.raises(DataError, match="if they are classes of positions, such as tokens, pass task='multiclass'"):
        kdkit.distill(nn.Embedding(20, 2), nn.Embedding(20, 2), data, data, classes=["even", "odd"], epochs=1)
    result = kdkit.distill(
        nn.Embedding(20, 2), nn.Embedding(20, 2), data, data, classes=["even", "odd"], epochs=1, task="multiclass"
    )
    assert 0 <= result.metrics["student"]["accuracy"].value <= 1


def test_a_signal_is_segmented_in_one_dimension():
    signals = torch.randn(16, 1, 20, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(signals, (signals[:, 0] > 0).long() + (signals[:, 0] > 1).long())
    result = kdkit.distill(nn.Conv1d(1, 3, 5, padding=2), nn.Conv1d(1, 3, 1), data, data, epochs=1)
    assert set(result.metrics["student"]["accuracy"].by_class) == {"0", "1", "2"}


class Embedder(nn.Module):
    """Tokens to logits of a class per text, with hidden states (batch, tokens, width)."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 3)

    def forward(self, tokens, mask):
        hidden = self.embed(tokens)
        return self.head((hidden * mask[..., None]).sum(1))


def hidden_objective(student, teacher, loss):
    taps = {
        name: Tap(net.module.embed, channels_last=True) for name, net in (("student", student), ("target", teacher))
    }
    return Match(teacher, loss, label="hidden", **taps)


@pytest.mark.parametrize("mask", ["mask", lambda inputs: inputs["mask"].bool()])
def test_masked_features_of_padded_texts_are_compared_at_their_tokens(mask):
    student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(4), trained=True)
    samples = tokens((2, 9))
    inputs, _ = pad(samples)
    labels = torch.tensor([0, 1])
    objective = hidden_objective(student, teacher, Masked(Hint(), mask=mask))
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    with torch.no_grad():
        rows = [torch.cat([net.module.embed(text) for text, _ in samples]) for net in (student, teacher)]
    torch.testing.assert_close(value.detach(), nn.functional.mse_loss(*rows))


@pytest.mark.parametrize("loss", [Masked(Hint(), mask="mask"), MiniLM(heads=2, mask="mask")], ids=["hint", "mini_lm"])
def test_masked_features_of_other_widths_do_not_depend_on_padding(loss):
    student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(6), trained=True)
    inputs, _ = pad(tokens((2, 9)))
    labels = torch.tensor([0, 1])
    padded = {name: nn.functional.pad(value, (0, 5)) for name, value in inputs.items()}
    objective = hidden_objective(student, teacher, loss)
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        has_projector = any("projector" in name for name, _ in distiller.named_parameters())
        assert has_projector == isinstance(loss, Masked)
        torch.testing.assert_close(distiller(padded, labels).loss, distiller(inputs, labels).loss)
        empty = {**inputs, "mask": torch.zeros_like(inputs["mask"])}
        assert distiller(empty, labels).loss == 0


def test_a_mask_that_the_inputs_lack_or_of_other_positions_is_a_problem():
    def problem(**options):
        student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(4), trained=True)
        loader = DataLoader([(*sample,) for sample in tokens()], batch_size=3, collate_fn=texts)
        objective = Truth(nn.CrossEntropyLoss()) + hidden_objective(student, teacher, Masked(Hint(), **options))
        return problems(recipe_of(objective, student, TorchData(loader, loader, classes=CLASSES)))

    def texts(samples):
        inputs, _ = pad(samples)
        return inputs, torch.arange(len(samples)) % 3

    assert "the inputs have no mask 'attention_mask'; got 'tokens', 'mask': pass mask=KEY" in problem()
    others = problem(mask=lambda inputs: inputs["mask"][:, 1:])
    assert "the positions of its mask (3, 6); got (3, 4, 7), (batch, channels, *positions); pass the mask of" in others
    with pytest.raises(RecipeError, match="Masked takes a loss on features without extra keyword arguments; got DKD"):
        Masked(DKD())
    with pytest.raises(RecipeError, match="mask is a key of the inputs, or a function of them; got 1"):
        Masked(Hint(), mask=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_a_compiled_student_of_tokens_trains_to_the_same_losses():
    def losses(**options):
        def recipe():
            teacher, student = Net("teacher", Tagger(16), trained=True), Net("student", Tagger())
            loader = DataLoader(tokens((5, 5, 5, 5)), batch_size=2, collate_fn=pad)
            objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
            return recipe_of(objective, student, TorchData(loader, loader, classes=CLASSES), epochs=2)

        return [epoch["terms"] for epoch in kdkit.run(recipe, **options).history["student"]]

    for compiled, plain in zip(losses(compile=True), losses(), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)
