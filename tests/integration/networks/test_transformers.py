"""Transformers of torch and of the transformers library: taps in fused layers, attention maps, and their own losses."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

import kdkit
from kdkit import AttentionTap, Batch, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth, model_loss
from kdkit.errors import CheckError
from kdkit.losses import Hint, Masked
from kdkit.nets.taps import OpenTaps
from kdkit.teachers.cache.digest import Digest
from tests.helpers.distilled import CLASSES, ROWS, cross_entropy, distilled, soft


class PerToken(nn.Module):
    """The encoder of torch on (batch, channels, time), whose layers have a fused fast path in eval mode."""

    def __init__(self, *, masked: bool = False, nested: bool = True, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(width, CLASSES)
        self.masked = masked

    def forward(self, signal: Tensor) -> Tensor:
        tokens = self.embed(signal.transpose(1, 2))  # (batch, time, width)
        mask = None
        if self.masked:
            mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
            mask[0, -3:] = True
        return self.head(self.encoder(tokens, src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("name", ["encoder.layers.0", "encoder.layers.1.linear1", "encoder.layers.0.norm1"])
def test_a_tap_turns_off_the_fast_path_of_a_transformer_encoder_that_skips_its_layer(name):
    module = PerToken().eval()
    signal = torch.randn(2, 2, 16)
    with torch.no_grad():
        plain = module(signal)
        with OpenTaps([Tap(module.get_submodule(name))]) as open_taps:
            tapped = module(signal)
            (fast,) = open_taps.take()
    with OpenTaps([Tap(module.get_submodule(name))]) as open_taps:
        module(signal)  # gradients switch the fast path off
        (slow,) = open_taps.take()
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tapped, plain, rtol=1e-4, atol=1e-5)


def test_a_transformer_encoder_teaches_and_learns(signals):
    teacher, student = Net("teacher", PerToken(width=12), trained=True), Net("student", PerToken())
    taps = {
        "student": Tap(student.module.encoder.layers[0].linear2, channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0].linear2, channels_last=True),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, soft) + Match(teacher, Hint(), **taps), signals)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_teacher_that_packs_padded_tokens_is_refused_with_the_option_to_change(signals):
    teacher, student = Net("teacher", PerToken(masked=True), trained=True), Net("student", PerToken(masked=True))
    taps = {
        "student": Tap(student.module.encoder.layers[0], channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0], channels_last=True),
    }
    with pytest.raises(CheckError, match="enable_nested_tensor=False"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_student_that_packs_padded_tokens_in_eval_mode_is_tapped_in_training(signals):
    teacher = Net("teacher", PerToken(masked=True, nested=False), trained=True)
    student = Net("student", PerToken(masked=True))
    taps = {
        "student": Tap(student.module.encoder.layers[0], channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0], channels_last=True),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


class Attending(nn.Module):
    """The attention of torch, which returns its output and its map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        tokens = self.embed(signal.transpose(1, 2))  # (batch, time, width)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_the_output_and_the_map_of_torch_attention_are_tapped_in_both_modes(signals):
    teacher, student = Net("teacher", Attending(), trained=True), Net("student", Attending())
    terms = Truth(cross_entropy) + Match(teacher, soft)
    for element, label in ((0, "output"), (1, "map")):
        taps = [Tap(net.module.attention, element=element) for net in (student, teacher)]
        terms += Match(teacher, Hint(), student=taps[0], target=taps[1], label=label)
    distilled(student, terms, signals)
    module = teacher.module.eval()
    with torch.no_grad(), OpenTaps([Tap(module.attention, element=1)]) as open_taps:
        teacher(Batch(torch.randn(2, 2, 16), torch.zeros(2)))
        (weights,) = open_taps.take()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))  # the map, averaged over the heads: rows sum to 1


def test_the_projection_of_torch_attention_is_refused_since_it_never_runs_as_a_module(signals):
    teacher, student = Net("teacher", Attending(), trained=True), Net("student", Attending())
    taps = {"student": Tap(student.module.attention.out_proj), "target": Tap(teacher.module.attention.out_proj)}
    with pytest.raises(CheckError, match="of net 'teacher' never fired: this module does not run"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


class Sentences(Dataset[Any]):
    """Texts of different lengths, padded to seven tokens, as a tokenizer returns them."""

    def __init__(self, *, labels: bool) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        tokens = torch.randint(1, 20, (7,), generator=torch.Generator().manual_seed(row))
        mask = torch.arange(7) < 4 + row % 4
        inputs = {"input_ids": tokens * mask, "attention_mask": mask.long()}
        return {**inputs, **({"labels": row % CLASSES} if self.labels else {})}, row % CLASSES


def texts(*, labels: bool = False) -> TorchData:
    split = Sentences(labels=labels)
    return TorchData(split, split, classes=[str(label) for label in range(CLASSES)])


def bert(name: str, width: int = 16, layers: int = 2, heads: int = 2, **options: Any) -> Net[Any]:
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        num_labels=CLASSES,
    )
    return Net(name, transformers.BertForSequenceClassification(config), **options)


def layer(net: Net[Any], index: int) -> Any:
    return net.module.bert.encoder.layer[index]


@pytest.mark.parametrize(
    "compile_module", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
# `Masked` selects tokens, which breaks the graph; torch.compile then examines tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_model_of_transformers_learns_from_its_own_loss_and_a_teacher(compile_module):
    teacher, student = bert("teacher", width=24, layers=3, trained=True), bert("student")
    hint = Hint()
    objective = (
        Truth(model_loss, student=Tap(student.module, element="loss"))
        + Truth(cross_entropy, "outside")
        + Match(teacher, soft)
        + Match(teacher, Masked(hint), student=Tap(layer(student, 0)), target=Tap(layer(teacher, 1)))
    )
    stage = Stage({student: objective}, Training(epochs=1, batch_size=5))
    recipe = Recipe(data=texts(labels=True), schedule=[stage])
    assert kdkit.check(recipe).notices == ()
    result = kdkit.run(recipe, device="cpu", compile=compile_module)
    terms = result.history["student"][-1]["terms"]
    assert terms["truth"] == pytest.approx(terms["outside"], rel=1e-5)
    assert hint.projector.channels.weight.shape == (24, 16)  # of the channels, and not of the tokens


def test_models_of_transformers_are_distilled_as_they_are():
    teacher, student = bert("teacher", width=24).module, bert("student").module
    before = copy.deepcopy(student.state_dict())
    split = Sentences(labels=False)
    result = kdkit.distill(teacher, student, split, split, task="multiclass", classes=["a", "b", "c"], epochs=1)
    assert set(result.metrics) == {"teacher", "student"}
    assert any(not torch.equal(value.cpu(), before[key]) for key, value in student.state_dict().items())


def test_the_loss_of_a_model_that_gets_no_labels_is_refused_with_the_advice():
    student = bert("student")
    own = Truth(model_loss, student=Tap(student.module, element="loss"))
    message = "BertForSequenceClassification of net 'student' gives .* no element 'loss'; .* if the inputs have labels"
    with pytest.raises(CheckError, match=message):
        distilled(student, own, texts())


def test_the_attention_of_a_model_of_transformers_is_matched_and_its_fused_kernel_is_restored():
    teacher, student = bert("teacher", layers=3, trained=True), bert("student")
    maps = []

    def distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
        maps.append(teacher_map)
        return (student_map - teacher_map).square().mean()

    taps = {
        "student": AttentionTap(layer(student, 1).attention),
        "target": AttentionTap(layer(teacher, 2).attention.self),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, distance, **taps), texts())
    assert maps[-1].shape[1:] == (2, 7, 7)
    torch.testing.assert_close(maps[-1].sum(-1), torch.ones(maps[-1].shape[:-1]))
    assert {net.module.config._attn_implementation for net in (teacher, student)} == {"sdpa"}


def test_a_tap_on_fused_attention_is_refused_with_the_layer_and_the_advice():
    teacher, student = bert("teacher", trained=True), bert("student")
    taps = {"student": AttentionTap(layer(student, 1).attention), "target": Tap(layer(teacher, 1).attention, element=1)}
    message = "BertAttention 'bert.encoder.layer.1.attention' of net 'teacher' gives .* attn_implementation='eager'"
    with pytest.raises(CheckError, match=message):
        distilled(student, Truth(cross_entropy) + Match(teacher, nn.MSELoss(), **taps), texts())


@pytest.mark.parametrize(("heads", "loss"), [(2, Masked(nn.MSELoss())), (1, nn.MSELoss())])
def test_attention_maps_of_different_numbers_of_heads_are_refused_with_the_remedy(heads, loss):
    teacher, student = bert("teacher", heads=4, trained=True), bert("student", heads=heads)
    taps = {"student": AttentionTap(layer(student, 1).attention), "target": AttentionTap(layer(teacher, 1).attention)}
    message = rf"the maps have {heads} and 4 heads: compare their means over heads with a loss such as lambda"
    with pytest.raises(CheckError, match=message):
        distilled(student, Truth(cross_entropy) + Match(teacher, loss, **taps), texts())
    means = Masked(lambda student, target: nn.functional.mse_loss(student.mean(1), target.mean(1)))
    distilled(student, Truth(cross_entropy) + Match(teacher, means, **taps), texts())


def test_an_average_of_a_model_of_transformers_teaches_by_its_layers():
    student = bert("student")
    taps = {"student": Tap(layer(student, 0)), "target": Tap(layer(student, 1))}
    maps = {key: AttentionTap(tap.module.attention) for key, tap in taps.items()}
    terms = Match(kdkit.Ema(student), Hint(), **taps) + Match(kdkit.Ema(student), nn.MSELoss(), **maps)
    distilled(student, Truth(cross_entropy) + terms, texts())
    assert student.module.config._attn_implementation == "sdpa"


def test_a_model_that_records_its_hidden_states_has_a_key_in_the_teacher_cache():
    # transformers installs hooks when hidden states are first asked for; models of speech always ask.
    net = bert("teacher")
    before = Digest().add(net.module, "it").facts()
    net.module(torch.ones(1, 7, dtype=torch.int64), output_hidden_states=True)
    assert layer(net, 0)._forward_hooks
    after = Digest().add(net.module, "it").facts()
    assert (after["tensors"], after["code"]) == (before["tensors"], before["code"])
