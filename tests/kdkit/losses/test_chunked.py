"""Chunked losses: the values and gradients of whole outputs, without these, in Distillers and in runs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Distiller, Ema, HeadTap, Match, Net, Past, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError, RecipeError
from kdkit.losses import (
    DIST,
    ULD,
    AdaptiveKL,
    AlphaBetaDivergence,
    Chunked,
    GeneralisedJSD,
    Hint,
    ReverseKL,
    SkewReverseKL,
    SoftTargets,
    catalog,
    extra_kwargs_of,
    is_mean_over_rows,
    loss_name,
)
from kdkit.metrics import Perplexity

WORDS = 11
OF_ROWS = [make for group in (catalog.ON_OUTPUTS, catalog.PER_LABEL) for make in group if is_mean_over_rows(make)]
CROSS_ENTROPIES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.CrossEntropyLoss(weight=torch.rand(WORDS, dtype=torch.float64) + 0.1, label_smoothing=0.2, ignore_index=3),
]


class Model(nn.Module):
    """A model of the next token from the last one: logits, (batch, tokens, words)."""

    def __init__(self, width, words=WORDS, *, tied=False, cap=None, bias=True):
        super().__init__()
        self.embed = nn.Embedding(WORDS if not tied else words, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, words, bias=bias)
        self.cap = cap
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        logits = self.head(self.body(self.embed(tokens)))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def batch(texts=5, tokens=7, seed=0):
    """Texts and the next tokens, of which the first two of each text and all of one text have no label."""
    drawn = torch.randint(0, WORDS, (texts, tokens + 1), generator=torch.Generator().manual_seed(seed))
    labels = drawn[:, 1:].clone()
    labels[:, :2] = labels[2] = -100
    return drawn[:, :-1], labels


def gradients(value, tensors):
    return torch.autograd.grad(value, tensors)


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("loss", [*(make() for make in OF_ROWS), *CROSS_ENTROPIES], ids=loss_name)
def test_values_and_gradients_are_those_of_whole_outputs(loss, rows):
    torch.manual_seed(0)
    hidden = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    theirs, labels = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % WORDS
    head, other = nn.Linear(5, WORDS).double(), nn.Linear(6, WORDS).double()
    tensors = (hidden, *head.parameters())
    kwargs = {"labels": labels} if extra_kwargs_of(loss) else {}
    of_labels = isinstance(loss, nn.CrossEntropyLoss)
    expected = loss(head(hidden), labels if of_labels else other(theirs), **kwargs)
    heads = (head,) if of_labels else (head, other)
    value = Chunked(loss, rows=rows, heads=heads)(hidden, labels if of_labels else theirs, **kwargs)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for actual, gradient in zip(gradients(value, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-11, atol=1e-13)
    assert not any(parameter.grad is not None for parameter in other.parameters())


OBJECTIVES = {
    "soft targets": (SoftTargets(temperature=3.0), {}),
    "reverse": (ReverseKL(temperature=2.0), {}),
    "jsd, tied heads": (GeneralisedJSD(beta=0.3), {"tied": True}),
    "skewed, a padded vocabulary": (SkewReverseKL(), {"teacher": 16}),
    "adaptive, another padding": (AdaptiveKL(), {"student": 13, "teacher": 16}),
    "uld, another vocabulary": (ULD(), {"teacher": 8}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_distiller_has_the_loss_and_gradients_of_whole_outputs(name):
    loss, options = OBJECTIVES[name]
    torch.manual_seed(0)
    of_student, of_teacher = options.get("student", WORDS), options.get("teacher", WORDS)
    small = Model(4, of_student, tied=options.get("tied", False)).double()
    large = Model(6, of_teacher, bias=False).double()
    inputs, labels = batch()
    student = Net("student", small, classes=of_student)
    teacher = Net("teacher", large, trained=True, classes=of_teacher)
    whole = Truth(nn.CrossEntropyLoss()) + 2 * Match(teacher, loss, label="match")
    side, target = HeadTap(small.head), HeadTap(large.head)
    chunked = Truth(Chunked(nn.CrossEntropyLoss(), rows=4), student=side)
    chunked += 2 * Match(teacher, Chunked(loss, rows=4), label="match", student=side, target=target)
    results = []
    for objective in (whole, chunked):
        with Distiller(student, objective, (inputs, labels), classes=[str(word) for word in range(WORDS)]) as distiller:
            output = distiller(inputs, labels)
            results.append((output, gradients(output.loss, [*small.parameters()])))
            assert distiller.eval()(inputs, labels).outputs.isfinite().all()
            assert small(inputs).isfinite().all()  # such as to write texts between steps
            weights = [key for key, _ in small.named_parameters()]  # tied ones once
            assert list(distiller.state_dict()) == [f"module.nets.0.{key}" for key in weights]
    (expected, whole_gradients), (output, chunk_gradients) = results
    assert output.outputs.isnan().all()
    assert output.outputs.shape == expected.outputs.shape
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.terms, expected.terms, rtol=1e-11, atol=0)
    torch.testing.assert_close(chunk_gradients, whole_gradients, rtol=1e-10, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of a tensor that any operation returns with memory of its own."""

    elements = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_tensor_is_larger_than_the_outputs_of_a_chunk():
    small, large = Model(4, 500), Model(6, 500)
    inputs = torch.randint(0, WORDS, (8, 20))
    side, target = HeadTap(small.head), HeadTap(large.head)
    teacher = Net("teacher", large, trained=True)
    objective = Truth(Chunked(nn.CrossEntropyLoss(), rows=16), student=side)
    objective += Match(teacher, Chunked(GeneralisedJSD(), rows=16), student=side, target=target)
    example = (inputs[:2], inputs[:2])
    with pytest.warns(UserWarning, match="the labels are the input tokens"):
        distiller = Distiller(Net("student", small), objective, example)
    with distiller, LargestTensor() as largest:
        distiller(inputs, inputs).loss.backward()
    assert largest.elements == 16 * 500


def test_a_batch_without_labels_is_zero_and_trains_nothing():
    small, large = Model(4), Model(6)
    inputs, labels = batch()
    side = HeadTap(small.head)
    objective = Truth(Chunked(nn.CrossEntropyLoss()), student=side) + Match(
        Net("teacher", large, trained=True), Chunked(ReverseKL()), student=side, target=HeadTap(large.head)
    )
    with Distiller(Net("student", small), objective, (inputs, labels)) as distiller:
        loss = distiller(inputs, torch.full_like(labels, -100)).loss
        loss.backward()
        copied = copy.deepcopy(distiller)  # with open hooks
        torch.testing.assert_close(copied(inputs, labels).loss, distiller(inputs, labels).loss)
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in small.parameters())


def outcome(*, chunked, **run_options):
    """The history and the weights of a run on texts in batches of different numbers of labels."""
    torch.manual_seed(0)
    small, large = Model(4), Model(6)
    student, teacher = Net("student", small), Net("teacher", large, trained=True)
    truth, match = nn.CrossEntropyLoss(), AlphaBetaDivergence()
    if chunked:
        side = HeadTap(small.head)
        objective = Truth(Chunked(truth, rows=5), student=side)
        objective += Match(teacher, Chunked(match, rows=5), label="match", student=side, target=HeadTap(large.head))
    else:
        objective = Truth(truth) + Match(teacher, match, label="match")
    data = TorchData(TensorDataset(*batch(10)), TensorDataset(*batch(5, seed=1)), classes=WORDS)
    stage = Stage({student: objective}, Training(epochs=3, batch_size=3, accumulate_steps=2))
    recipe = Recipe(data=data, schedule=[stage], metrics=(Perplexity(),))
    result = kdkit.run(recipe, progress=False, **run_options)
    return result, small.state_dict()


def test_a_run_has_the_history_and_the_best_epoch_of_whole_outputs_and_caches_hidden_states(tmp_path):
    expected, weights = outcome(chunked=False, teacher_cache="off")
    result, chunk_weights = outcome(chunked=True, out=tmp_path / "run", teacher_cache=tmp_path / "cache")
    (entry,) = (path.parent for path in tmp_path.glob("cache/*/meta.json"))
    assert [path.name for path in entry.glob("feature-*")] == ["feature-0"]
    assert not (entry / "output").exists()
    for left, right in zip(result.history["student"], expected.history["student"], strict=True):
        assert left["terms"] == pytest.approx(right["terms"], rel=1e-5)
        assert left["perplexity"] == pytest.approx(right["perplexity"], rel=1e-5)
        assert left["best"] is right["best"]
    torch.testing.assert_close(chunk_weights, weights, rtol=1e-4, atol=1e-6)


def test_outputs_of_a_teacher_without_layers_are_a_target():
    small, large = Model(4), Model(6)
    inputs, labels = batch()
    teacher = Net("teacher", lambda tokens: large(tokens), version="1")
    values = []
    for loss, taps in ((ReverseKL(), {}), (Chunked(ReverseKL(), rows=4), {"student": HeadTap(small.head)})):
        with Distiller(Net("student", small), Match(teacher, loss, **taps), (inputs, labels)) as distiller:
            values.append(distiller(inputs, labels).loss)
    torch.testing.assert_close(*values)


def test_functions_replace_heads_whose_outputs_the_network_changes():
    small, large = Model(4, cap=2.0), Model(6)
    inputs, labels = batch()
    student, teacher = Net("student", small), Net("teacher", large, trained=True)
    tapped = Match(teacher, Chunked(ReverseKL()), student=HeadTap(small.head), target=HeadTap(large.head))
    message = r"outputs of the network are not those of Linear 'head' of net 'student', .* for example by a soft cap"
    with pytest.raises(CheckError, match=message):
        Distiller(student, tapped, (inputs, labels))
    loss = Chunked(ReverseKL(), heads=(lambda hidden: 2.0 * torch.tanh(small.head(hidden) / 2.0), large.head))
    taps = {"student": Tap(small.head, "input"), "target": Tap(large.head, "input")}
    values = []
    for match in (Match(teacher, loss, **taps), Match(teacher, ReverseKL())):
        with Distiller(student, match, (inputs, labels)) as distiller:
            values.append(distiller(inputs, labels).loss)
    torch.testing.assert_close(*values)


def test_a_loop_without_a_distiller_passes_the_heads():
    small, large = Model(4), Model(6)
    inputs, labels = batch()
    loss = Chunked(ReverseKL(), rows=4, heads=(small.head, large.head))
    with kdkit.tap(HeadTap(small.head)) as hidden, kdkit.tap(HeadTap(large.head)) as theirs:
        ours, targets = small(inputs), large(inputs)
        rows = [feature.value.movedim(1, -1)[labels != -100] for feature in (hidden, theirs)]
        value = loss(*rows)
    kept = labels != -100
    torch.testing.assert_close(value, ReverseKL()(ours[kept], targets[kept]))
    with pytest.raises(RecipeError, match=r"hidden states \(rows, channels\) .*; got \(5, 7, 4\) and \(5, 7, 6\)"):
        loss(torch.zeros(5, 7, 4), torch.zeros(5, 7, 6))


@pytest.mark.parametrize("loss", [DIST(), Hint(), ReverseKL, F.mse_loss, nn.CrossEntropyLoss(reduction="none")])
def test_losses_that_are_no_mean_over_rows_are_refused(loss):
    with pytest.raises(RecipeError, match=r"Chunked takes nn.CrossEntropyLoss\(\), or a loss"):
        Chunked(loss)


def test_a_loss_of_user_code_says_that_it_is_a_mean_over_rows():
    def error(student, target):
        return (student - target).square().mean()

    error.mean_over_rows = True
    head = nn.Linear(2, 3)
    hidden = torch.randn(5, 2)
    torch.testing.assert_close(
        Chunked(error, rows=2, heads=(head, head))(hidden, hidden + 1), error(head(hidden), head(hidden + 1))
    )


def problems(objective, small):
    with pytest.raises(CheckError) as caught:
        Distiller(Net("student", small) if isinstance(small, nn.Module) else small, objective, batch())
    return str(caught.value)


def test_terms_that_take_outputs_that_are_left_out_are_refused():
    small, large = Model(4), Model(6)
    teacher = Net("teacher", large, trained=True)
    side, target = HeadTap(small.head), HeadTap(large.head)
    match = Match(teacher, Chunked(ReverseKL()), student=side, target=target)
    message = "term 'truth' takes the outputs of net 'student', which are not computed because another"
    assert message in problems(Truth(nn.CrossEntropyLoss()) + match, small)
    other = Match(teacher, ReverseKL(), label="other")
    assert "term 'other' takes the outputs of net 'teacher'" in problems(match + other, small)
    assert "wrap it, kdkit.losses.Chunked(ReverseKL(" in problems(Match(teacher, ReverseKL(), student=side), small)
    student = Net("student", small)
    for own, text in ((Ema(student), "needs a Net or a Peer"), (Past(student), "no features")):
        assert text in problems(Match(own, Chunked(ReverseKL()), student=side, target=HeadTap(small.head)), student)
    whole = Match(teacher, Chunked(ReverseKL()), student=Tap(small.head), target=Tap(large.head))
    assert "Chunked takes the input of a head, one tap on each side" in problems(whole, small)
    padded = Net("padded", Model(6, 16), trained=True)
    match = Match(padded, Chunked(ReverseKL()), student=side, target=HeadTap(padded.module.head))
    assert "Net(..., classes=16)" in problems(match, small)
