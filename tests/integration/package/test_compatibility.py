"""Models, teachers, data and files of the table of docs/compatibility.md that no other test shows."""

import contextlib
import copy
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import sklearn.ensemble
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, random_split

import kdkit
from kdkit import (
    AverageWeights,
    DataError,
    Inputs,
    LRSchedule,
    Match,
    MetricResult,
    Net,
    OnnxModel,
    Optimizer,
    Recipe,
    RecipeError,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    Unlabelled,
)
from kdkit.errors import CheckError, RunFolderError
from kdkit.losses import Hint, SampleWeighted, SoftTargets
from kdkit.metrics.base import WithoutThresholds
from tests.helpers.callbacks import Recorder
from tests.helpers.tiny import Mlp, samples

ROWS = 24
WHOLE = samples(rows=ROWS)
INPUTS, LABELS = WHOLE.tensors


def training(**changes):
    defaults = {"epochs": 4, "batch_size": 8, "optimizer": Optimizer(torch.optim.Adam, lr=0.03)}
    return Training(**{**defaults, **changes})


def distill(teacher, student, train=WHOLE, validation=None, **options):
    options = {"device": "cpu", "training": training(), **options}
    return kdkit.distill(teacher, student, train, validation or train, **options)


def require_learned(result):
    """Require that the objective became smaller, and that the metric of the student is a number."""
    first, *_, last = (sum(epoch["terms"].values()) for epoch in result.history["student"])
    assert last < first
    assert all(np.isfinite(metric.value) for metric in result.metrics["student"].values())


# Students


@contextlib.contextmanager
def process_group(folder):
    """The process group of a single process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_scripted_module_teaches_and_learns():
    require_learned(distill(torch.jit.trace(Mlp(hidden=8).eval(), INPUTS), torch.jit.script(Mlp())))


def test_a_lazy_module_gets_its_sizes_from_the_first_sample():
    student = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))
    require_learned(distill(Mlp(), student))
    assert student[0].weight.shape == (6, 4)


def test_a_volume_is_classified_by_convolutions_in_three_dimensions():
    def network(width):
        return nn.Sequential(nn.Conv3d(1, width, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 3))

    teacher, student = Net("teacher", network(8), trained=True), Net("student", network(4))
    hint = Match(teacher, Hint(), student=Tap(student.module[0]), target=Tap(teacher.module[0]))
    data = TensorDataset(torch.randn(ROWS, 1, 5, 6, 7), LABELS)
    stage = Stage({student: Truth(nn.CrossEntropyLoss()) + hint}, training())
    require_learned(kdkit.run(Recipe(data=TorchData(data, data), schedule=[stage]), device="cpu"))


@pytest.mark.parametrize("options", [{}, {"training": training(ema=AverageWeights(decay=0.5))}, {"baseline": True}])
def test_a_pruned_student_keeps_its_zeros(options):
    student = Mlp(hidden=8)
    prune.l1_unstructured(student.head, "weight", amount=0.5)
    zeros = student.head.weight == 0
    result = distill(Mlp(), student, **options)
    require_learned(result)
    assert zeros.sum() == 12
    trained = [net.module.head for name, net in result.nets.items() if name != "teacher"]
    assert len(trained) == 1 + ("baseline" in options)
    for head in trained:
        assert torch.equal(head.weight == 0, zeros)
        prune.remove(head, "weight")
        assert torch.equal(head.weight == 0, zeros)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
def test_a_student_with_the_old_weight_norm_is_averaged():
    student = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    require_learned(distill(Mlp(), student, training=training(ema=AverageWeights(decay=0.5))))
    layer = student[0]
    torch.testing.assert_close(layer.weight.norm(dim=1, keepdim=True), layer.weight_g)


def test_a_student_with_a_parametrized_weight_is_trained_and_saved(tmp_path):
    student = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    require_learned(distill(Mlp(), student, out=tmp_path / "run"))
    other = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    assert torch.equal(Net("student", other, weights=tmp_path / "run").module[0].weight, student[0].weight)


@pytest.mark.filterwarnings("ignore")
def test_a_student_is_trained_with_fake_quantization():
    from torchao import quantization
    from torchao.quantization import qat

    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    weights = qat.IntxFakeQuantizeConfig(torch.int8, "per_channel")
    quantization.quantize_(student, qat.QATConfig(weight_config=weights, step="prepare"))
    require_learned(distill(Mlp(), student))


@pytest.mark.filterwarnings("ignore")
def test_a_student_with_observers_of_torch_is_trained_averaged_and_loaded(tmp_path):
    from torch.ao import quantization  # deprecated, but without a successor for layers other than linear ones

    def prepared(backend="x86"):  # whose ranges of weights, by channel, have no size before a pass
        module = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        module.qconfig = quantization.get_default_qat_qconfig(backend)
        return quantization.prepare_qat(module.train())

    student = prepared()
    require_learned(distill(Mlp(), student, training=training(ema=AverageWeights(decay=0.5)), out=tmp_path / "run"))
    torch.save(student.state_dict(), tmp_path / "state.pt")
    for weights in (tmp_path / "run", tmp_path / "state.pt"):
        state = Net("student", prepared(), weights=weights).network.state_dict()
        assert state["1.weight_fake_quant.scale"].shape == (8,)
        # also those of the run, which has evaluated the network since then
        assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    with pytest.raises(RecipeError, match=r"1.weight_fake_quant.activation_post_process.max_val' of shape \(8,\), not"):
        Net("student", prepared("qnnpack"), weights=tmp_path / "run")  # which has one range for all channels


def test_students_of_one_process_may_be_wrapped_for_several(tmp_path):
    with process_group(tmp_path):
        student = nn.parallel.DistributedDataParallel(Mlp())
        require_learned(distill(Mlp(), student, out=tmp_path / "run"))
    Net("student", Mlp(), weights=tmp_path / "run")  # without the prefix of the wrapper


def test_a_student_that_fsdp_shards_is_refused_with_the_remedy(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with process_group(tmp_path):
        student = fully_shard(Mlp(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(CheckError, match=r"a DTensor, .*pass the module without fully_shard, .* kdkit.Distiller"):
            distill(Mlp(), student)


@pytest.mark.filterwarnings("ignore")
def test_a_trained_student_is_exported_to_onnx(tmp_path):
    student = Mlp()
    require_learned(distill(Mlp(hidden=8), student))
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    torch.onnx.export(student.eval(), (INPUTS,), tmp_path / "student.onnx", dynamic_shapes=(rows,), dynamo=True)
    torch.testing.assert_close(OnnxModel(tmp_path / "student.onnx")(INPUTS), student(INPUTS).detach())


def test_a_trained_model_of_transformers_is_saved_and_loaded_by_its_own_methods(tmp_path):
    model = language_model()
    require_learned(distill(language_model(16), model, tokens()))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


# Language models


def language_model(width=8, vocabulary=20):
    import transformers  # late: it takes seconds

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=1, n_head=2, n_positions=8, **ends)
    return transformers.GPT2LMHeadModel(config)


def tokens():
    """Texts whose labels are the next tokens, as rows of a Hugging Face dataset."""
    ids = (torch.arange(ROWS)[:, None] + torch.arange(6)) % 20
    labels = torch.cat([ids[:, 1:], torch.full((ROWS, 1), -100)], 1)  # the last token has no next one
    return [{"input_ids": text, "labels": following} for text, following in zip(ids, labels, strict=True)]


def test_a_language_model_learns_the_next_token_from_a_larger_one():
    require_learned(distill(language_model(16), language_model(), tokens()))


def test_a_language_model_with_another_vocabulary_teaches_the_tokens_that_both_have():
    teacher = language_model(16, vocabulary=24)
    with pytest.raises(CheckError, match=r"outputs of shape \(batch, 24, 6\), but the data's 20 classes need"):
        distill(teacher, language_model(), tokens())
    vocabulary = [f"token {index}" for index in range(24)]
    named = Net("teacher", teacher, trained=True, classes=vocabulary)
    require_learned(distill(named, language_model(), tokens(), classes=vocabulary[:20]))


def test_a_model_with_an_encoder_and_a_decoder_learns_from_both_texts():
    import transformers

    def model(width):
        torch.manual_seed(0)
        sizes = {"vocab_size": 20, "d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))

    texts, targets = torch.randint(1, 20, (ROWS, 6)), torch.randint(1, 20, (ROWS, 4))
    shifted = torch.cat([torch.zeros(ROWS, 1, dtype=torch.long), targets[:, :-1]], 1)
    keys = ("input_ids", "decoder_input_ids", "labels")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(texts, shifted, targets, strict=True)]
    require_learned(distill(model(16), model(8), rows))
    of_encoder = [(row["input_ids"], row["labels"]) for row in rows]
    with pytest.raises(DataError, match="its decoder needs decoder_input_ids among the inputs, the labels shifted"):
        distill(model(16), model(8), of_encoder)


# Outputs


class Pair(nn.Module):
    """Two encoders whose outputs are the similarities of all pairs of a batch, as those of CLIP."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, image, text):
        return self.image(image) @ self.text(text).T


def test_outputs_that_compare_all_samples_of_a_batch_are_refused():
    pairs = [((row, row), 0) for row in INPUTS]
    with pytest.raises(CheckError, match="but the data's 1 classes need"):
        distill(Pair(), Pair(), pairs)


def test_embeddings_are_learned_from_those_of_a_teacher_as_numbers():
    teacher = nn.Linear(4, 6)
    data = TensorDataset(INPUTS, teacher(INPUTS).detach())
    result = distill(teacher, nn.Linear(4, 6), data)
    require_learned(result)
    assert result.metrics["teacher"]["r2"].value == pytest.approx(1.0)


# Teachers


def test_a_forest_of_scikit_learn_teaches_by_its_log_probabilities():
    forest = sklearn.ensemble.RandomForestClassifier(10, random_state=0).fit(INPUTS.numpy(), LABELS.numpy())

    def log_probabilities(inputs):
        return torch.from_numpy(forest.predict_proba(inputs.numpy())).float().clamp(min=1e-6).log()

    require_learned(distill(Net("forest", log_probabilities, version="seed 0"), Mlp()))
    with pytest.raises(
        RecipeError, match="got RandomForestClassifier; pass a function that returns what it predicts as"
    ):
        distill(forest, Mlp())
    of_arrays = Net("forest", lambda inputs: forest.predict_proba(inputs.numpy()), version="seed 0")
    with pytest.raises(CheckError, match=r"gives a ndarray, but a tensor was expected; return torch.from_numpy"):
        distill(of_arrays, Mlp())


@dataclass(frozen=True)
class Column:
    """A view of one column of the inputs."""

    name: str

    @property
    def key(self):
        return f"column {self.name}"

    def __call__(self, batch):
        return (batch.inputs[self.name],), {}


def test_outputs_that_a_teacher_stored_in_the_data_teach_without_it():
    logits = Mlp(hidden=8).eval()(INPUTS).detach()
    rows = [({"x": x, "logits": stored}, y) for x, stored, y in zip(INPUTS, logits, LABELS, strict=True)]
    stored = Net("stored", lambda logits: logits, view=Column("logits"), version="1")
    result = distill(stored, Net("student", Mlp(), view=Column("x")), rows)
    require_learned(result)
    accuracy = (logits.argmax(1) == LABELS).double().mean()
    assert result.metrics["stored"]["accuracy"].value == pytest.approx(float(accuracy))


def test_a_teacher_in_bf16_needs_inputs_or_a_run_in_bf16():
    teacher = Mlp().to(torch.bfloat16)
    with pytest.raises(CheckError, match=r"must have the same dtype.*view=Inputs\(dtype=torch.bfloat16\).*'bf16'"):
        distill(teacher, Mlp())
    require_learned(distill(teacher, Mlp(), precision="bf16"))
    require_learned(distill(Net("teacher", teacher, view=Inputs(dtype=torch.bfloat16), trained=True), Mlp()))


# Data


def as_loader(collate):
    return DataLoader(list(WHOLE), batch_size=8, collate_fn=collate)


class NumpyBatches:
    """An iterable of batches of numpy, as the loaders of other frameworks are."""

    def __len__(self):
        return 3

    def __iter__(self):
        for start in range(0, ROWS, 8):
            yield INPUTS[start : start + 8].numpy(), LABELS[start : start + 8].numpy()


DATA = {
    "labels of int32": TensorDataset(INPUTS, LABELS.int()),
    "labels of uint8": TensorDataset(INPUTS, LABELS.to(torch.uint8)),
    "rows of numpy": [(row.numpy(), np.int32(label)) for row, label in WHOLE],
    "batches of numpy": NumpyBatches(),
    "parts of a data set": ConcatDataset([*random_split(WHOLE, [16, 4, 4]), Subset(WHOLE, range(0))]),
}


@pytest.mark.parametrize("name", DATA)
def test_samples_of_numpy_and_integers_of_any_size_are_data(name):
    require_learned(distill(Mlp(), Mlp(), DATA[name], WHOLE))


def test_a_ragged_batch_of_nested_tensors_is_an_input():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, texts):
            return torch.nested.to_padded_tensor(self.layer(texts), 0.0).mean(1)

    def ragged(rows):
        texts = [row.expand(2 + int(label), 4) for row, label in rows]
        return torch.nested.nested_tensor(texts, layout=torch.jagged), torch.stack([label for _, label in rows])

    require_learned(distill(Mean(), Mean(), as_loader(ragged)))
    require_learned(distill(Mean(), Mean(), collate_fn=ragged, draws=1))


class GraphNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer, self.head = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, nodes, edges, graph):
        hidden = self.layer(nodes)
        hidden = hidden.index_add(0, edges[1], hidden[edges[0]]).relu()
        return self.head(hidden.new_zeros(int(graph.max()) + 1, hidden.shape[1]).index_add(0, graph, hidden))


def rings(rows):
    """Return a ring of nodes for each row as one graph, and the labels."""
    sizes = [3 + int(label) for _, label in rows]
    nodes = torch.cat([row.expand(size, 4) for (row, _), size in zip(rows, sizes, strict=True)])
    starts = [0, *itertools.accumulate(sizes)][:-1]
    edges = [
        torch.stack([torch.arange(size), torch.arange(size).roll(1)]) + start
        for size, start in zip(sizes, starts, strict=True)
    ]
    graph = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(sizes))
    inputs = {"nodes": nodes, "edges": torch.cat(edges, 1), "graph": graph}
    return inputs, torch.stack([label for _, label in rows])


def test_a_graph_batch_is_a_mapping_from_a_loader():
    loader = DataLoader(WHOLE, batch_size=ROWS - 1, collate_fn=rings)  # the last batch has one graph
    student = GraphNet(4)
    result = distill(GraphNet(8), student, loader)
    require_learned(result)
    with torch.no_grad():
        correct = torch.cat([student(**inputs).argmax(1) == labels for inputs, labels in loader])
    assert result.metrics["student"]["accuracy"].value == pytest.approx(float(correct.double().mean()))


def test_a_graph_batch_is_an_object_whose_labels_are_an_attribute():
    class Graphs:
        """As the batches of torch_geometric."""

        def __init__(self, rows):
            self.inputs, self.y = rings(rows)

        def to(self, device):
            return self

    class ObjectNet(GraphNet):
        def forward(self, graphs):
            inputs, graphs.inputs = graphs.inputs, None  # networks of torch_geometric set attributes, too
            return super().forward(**inputs)

    loader = as_loader(Graphs)
    with pytest.raises(
        DataError, match=r"got a Graphs; name the attribute that has its labels: TorchData\(..., labels="
    ):
        distill(ObjectNet(8), ObjectNet(4), loader)
    with pytest.raises(DataError, match="got a Graphs without an attribute 'label'; name the attribute"):
        distill(ObjectNet(8), ObjectNet(4), loader, labels="label")
    require_learned(distill(ObjectNet(8), ObjectNet(4), loader, labels="y"))
    with pytest.raises(DataError, match="got a Graphs; give it labels that mean none, such as -1 for each sample"):
        distill(ObjectNet(8), ObjectNet(4), kdkit.Unlabelled(loader))

    class UnlabelledGraphs(Graphs):
        def __init__(self, rows):
            super().__init__(rows)
            self.y = torch.full_like(self.y, -1)

    with pytest.warns(UserWarning, match="term 'truth' was 0 in every batch"):
        distill(ObjectNet(8), ObjectNet(4), as_loader(UnlabelledGraphs), loader, labels="y", ignore_index=-1)
    with pytest.raises(DataError, match=r"pass collate_fn=..., a function that makes a batch"):
        distill(ObjectNet(8), ObjectNet(4), [Graphs([row]) for row in WHOLE], labels="y")


def test_packed_sequences_are_refused_since_their_parts_become_arguments():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, texts):
            return self.head(self.layer(texts)[1][0][-1])

    def pack(rows):
        texts = [row.expand(2 + int(label), 4) for row, label in rows]
        return nn.utils.rnn.pack_sequence(texts, enforce_sorted=False), torch.stack([label for _, label in rows])

    with pytest.raises(DataError, match="takes 2 positional arguments but 5 were given"):
        distill(Recurrent(), Recurrent(), as_loader(pack))


class Cycle(IterableDataset):
    """The samples again and again."""

    def __iter__(self):
        return itertools.cycle(WHOLE)


def test_an_endless_stream_is_validated_up_to_a_number_of_samples():
    options = {"training": training(steps_per_epoch=3), "evaluation_samples": ROWS}
    require_learned(distill(Mlp(), Mlp(), Cycle(), Cycle(), **options))


PROBLEMS = {
    "targets of a detector": (
        as_loader(lambda rows: (torch.stack([row for row, _ in rows]), tuple({"label": label} for _, label in rows))),
        "the labels of the train data are a tuple; expected a tensor with equal sizes for all samples: pack them",
    ),
    "names of classes": (
        [(row, "abc"[label]) for row, label in WHOLE],
        r"expected a tensor of class indices: number the classes, such as with names\.index",
    ),
    "no labels": ([(row, None) for row, _ in WHOLE], r"give samples without a label the label -1"),
    "arrays and not samples": ((INPUTS.numpy(), LABELS.numpy()), r"must yield pairs \(inputs, labels\); got a"),
    "tables": ((pd.DataFrame(INPUTS.numpy()), LABELS), r"make tensors of tables: TensorDataset\(torch.tensor\("),
    "a column of numbers": (
        TensorDataset(INPUTS, LABELS[:, None]),
        r"labels.squeeze\(1\), or, if they are numbers, such as counts, floats: labels.float\(\)",
    ),
    "inputs apart": (TensorDataset(INPUTS, INPUTS, LABELS), "got additional weights that are int64 of shape"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_data_of_a_form_that_is_not_taken_is_refused_with_the_remedy(name):
    train, message = PROBLEMS[name]
    with pytest.raises(DataError, match=message):
        distill(Mlp(), Mlp(), train)


def test_images_of_pil_are_refused_with_the_transform_to_add():
    from PIL import Image

    rows = [(Image.new("RGB", (4, 4)), int(label)) for label in LABELS]
    with pytest.raises(DataError, match=r"convert images to tensors in the Dataset, such as with .*PILToTensor\(\)"):
        distill(Mlp(), Mlp(), rows)


def test_a_training_set_without_any_label_is_learned_from_the_teacher_alone():
    minus_one = TensorDataset(INPUTS, torch.full_like(LABELS, -1))
    networks = copy.deepcopy((Mlp(hidden=8), Mlp()))
    weights = []
    for train in (minus_one, Unlabelled(TensorDataset(INPUTS)), Unlabelled([{"inputs": row} for row in INPUTS])):
        modules = copy.deepcopy(networks)
        teacher, student = Net("teacher", modules[0], trained=True), Net("student", modules[1])
        data = TorchData(train, WHOLE, classes=["a", "b", "c"], ignore_index=-1)
        stage = Stage({student: Match(teacher, SoftTargets())}, training())
        require_learned(kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu"))
        weights.append(student.module.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_a_term_on_labels_is_refused_for_training_data_without_labels():
    student = Net("student", Mlp())
    data = TorchData(Unlabelled(TensorDataset(INPUTS)), WHOLE)
    recipe = Recipe(data=data, schedule=[Stage({student: Truth(nn.CrossEntropyLoss())}, training())])
    with pytest.raises(CheckError, match="term 'truth': it learns from labels, but the training data has none; leave"):
        kdkit.run(recipe, device="cpu")
    # The loss on labels of `distill` is left out.
    loader = DataLoader(TensorDataset(INPUTS), 8)
    require_learned(distill(Mlp(), Mlp(), Unlabelled(loader), WHOLE, batch_transform=lambda x, y: (x.flip(0), y)))


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.1), nn.NLLLoss(ignore_index=-1)]
)
def test_a_batch_without_a_label_has_a_loss_of_zero_and_does_not_end_the_run(loss):
    labels = LABELS.clone()
    labels[:20] = -1  # five of six batches
    student = Net("student", nn.Sequential(Mlp(), nn.LogSoftmax(1)))
    data = TorchData(TensorDataset(INPUTS, labels), WHOLE, classes=["a", "b", "c"], ignore_index=-1)
    stage = Stage({student: Truth(loss)}, training(batch_size=4))
    require_learned(kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu"))
    with kdkit.Distiller(student, Truth(loss), WHOLE[:4], ignore_index=-1) as distiller:
        step = distiller(INPUTS[:4], labels[:4])
        step.loss.backward()
    assert step.loss == 0
    assert all(not parameter.grad.any() for parameter in student.module.parameters())


def test_weighted_samples_may_begin_with_some_that_have_no_label():
    labels = LABELS.clone()
    labels[:8] = -1
    train, options = TensorDataset(INPUTS, labels, torch.rand(ROWS)), {"classes": ["a", "b", "c"], "ignore_index": -1}
    require_learned(distill(Mlp(), Mlp(), train, WHOLE, **options))
    loss = SampleWeighted(nn.CrossEntropyLoss())  # which leaves out -100
    student = Net("student", Mlp())
    recipe = Recipe(data=TorchData(train, WHOLE, **options), schedule=[Stage({student: Truth(loss)}, training())])
    with pytest.raises(CheckError, match=r"SampleWeighted ignores the label -100, .*pass ignore_index=-1"):
        kdkit.run(recipe, device="cpu")


# Files and folders


def test_files_of_other_formats_are_refused_with_the_way_to_export_them(tmp_path):
    np.savez(tmp_path / "weights.npz", weight=np.zeros(3))
    torch.export.save(torch.export.export(Mlp().eval(), (INPUTS,)), tmp_path / "weights.pt2")
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "weights.gguf").write_bytes(b"GGUF" + bytes(100))
    for file in tmp_path.iterdir():
        with pytest.raises(RecipeError, match=r"cannot be read: .*torch\.save\(model\.state_dict\(\), FILE\)"):
            Net("teacher", Mlp(), weights=file)


@pytest.mark.filterwarnings("ignore")
def test_files_that_are_in_the_place_of_weights_are_named_with_the_way_to_get_them(tmp_path):
    torch.jit.script(Mlp().eval()).save(tmp_path / "teacher.pt")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    (tmp_path / "teacher.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(100))
    for file, advice in {
        "teacher.pt": r"a TorchScript program; .*torch\.jit\.load\(FILE\)\.state_dict\(\)",
        "pointer.safetensors": "a pointer of Git LFS; run git lfs pull",
        "page.pth": "a web page, .* download the file itself",
        "teacher.onnx": r"an ONNX model, .* kdkit\.OnnxModel\(FILE\)",
    }.items():
        with pytest.raises(RecipeError, match=rf"{file} cannot be read: it is {advice}"):
            Net("teacher", Mlp(), weights=tmp_path / file)
    with pytest.raises(RecipeError, match=r"but https://host/teacher\.pth is an address; download it first"):
        Net("teacher", Mlp(), weights="https://host/teacher.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_is_loaded_after_it_is_made_one_file(tmp_path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    module = Mlp()
    checkpoint.save(module.state_dict(), checkpoint_id=tmp_path / "parts")
    with pytest.raises(RecipeError, match="has no weights of net 'teacher'"):
        Net("teacher", Mlp(), weights=tmp_path / "parts")
    dcp_to_torch_save(tmp_path / "parts", tmp_path / "whole.pt")
    loaded = Net("teacher", Mlp(), weights=tmp_path / "whole.pt").module
    assert torch.equal(loaded.head.weight, module.head.weight)


def learning(epochs, weights=None):
    student = Net("student", Mlp(), weights=weights)
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, training(epochs=epochs))
    return Recipe(data=TorchData(WHOLE, WHOLE), schedule=[stage])


def test_a_run_is_trained_further_as_a_new_run_from_its_weights(tmp_path):
    kdkit.run(learning(1), out=tmp_path / "run", device="cpu")
    with pytest.raises(
        RunFolderError, match=r"differs in its trainings.*; resume it as it was started, choose another folder"
    ):
        kdkit.run(learning(3), out=tmp_path / "run", resume=True, device="cpu")
    kdkit.run(learning(2, weights=tmp_path / "run"), out=tmp_path / "more", device="cpu")


# Training


def test_a_schedule_of_transformers_has_the_length_of_the_stage():
    import transformers

    make = transformers.get_cosine_schedule_with_warmup
    schedule = LRSchedule(make, interval="update", num_warmup_steps=2)
    options = training(epochs=2, optimizer=Optimizer(torch.optim.SGD, lr=0.1), lr_schedule=schedule)
    recorder = Recorder()
    distill(Mlp(), Mlp(), training=options, callbacks=[recorder])
    optimizer = torch.optim.SGD(Mlp().parameters(), lr=0.1)
    expected = make(optimizer, 2, 6)
    for _ in range(3):
        optimizer.step()
        expected.step()
    rates = [epoch.learning_rate for epoch in recorder.epochs]
    assert rates == pytest.approx([optimizer.param_groups[0]["lr"], 0.0], abs=1e-6)


def test_an_optimizer_that_exists_already_is_refused():
    with pytest.raises(
        RecipeError, match=r"optimizer must be a kdkit.Optimizer, such as Optimizer\(torch\.optim\.Adam, lr=\.\.\.\)"
    ):
        Training(epochs=1, optimizer=torch.optim.Adam(Mlp().parameters()))


def test_two_optimizers_of_one_stage_are_refused():
    with pytest.raises(RecipeError, match=r"optimizer must be a kdkit.Optimizer"):
        Training(epochs=1, optimizer=[Optimizer(torch.optim.Adam), Optimizer(torch.optim.SGD)])


def test_a_metric_of_torchmetrics_is_wrapped():
    from torchmetrics import functional

    class Kappa(WithoutThresholds):
        name = "kappa"

        def compute(self, test):
            outputs, labels = torch.from_numpy(test.outputs), torch.from_numpy(test.labels)
            return MetricResult(value=float(functional.cohen_kappa(outputs, labels, "multiclass", num_classes=3)))

    teacher, student = Net("teacher", Mlp(), trained=True), Net("student", Mlp())
    stage = Stage({student: Match(teacher, SoftTargets())}, training(epochs=1))
    result = kdkit.run(Recipe(data=TorchData(WHOLE, WHOLE), schedule=[stage], metrics=[Kappa()]), device="cpu")
    expected = functional.cohen_kappa(student.module.eval()(INPUTS).detach(), LABELS, "multiclass", num_classes=3)
    assert result.metrics["student"]["kappa"].value == pytest.approx(float(expected))


def test_volumes_of_monai_whose_transforms_are_seeded_from_torch_are_samples_with_draws(tmp_path):
    from monai.transforms import Compose, EnsureChannelFirstd, RandFlipd, RandGaussianNoised

    class Scans(torch.utils.data.Dataset):
        def __init__(self, *random):
            keys = ["image", "mask"]
            self.transform = Compose([EnsureChannelFirstd(keys, channel_dim="no_channel"), *random])

        def __len__(self):
            return 8

        def __getitem__(self, row):
            volume = np.random.default_rng(row).normal(size=(4, 4, 4)).astype(np.float32)
            self.transform.set_random_state(int(torch.randint(2**31, ())))
            sample = self.transform({"image": volume, "mask": (volume > 0).astype(np.int64)})
            return {**sample, "mask": sample["mask"][0]}

    def run(out):
        torch.manual_seed(0)
        watch = Recorder()
        teacher = Net("teacher", nn.Conv3d(1, 2, 3, padding=1), trained=True)
        student = Net("student", nn.Conv3d(1, 2, 1))
        random = RandFlipd(["image", "mask"], prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=1.0)
        data = TorchData(Scans(*random), Scans(), labels="mask", classes=2, draws=2)
        objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
        recipe = Recipe(data=data, schedule=[Stage({student: objective}, training(epochs=3))])
        result = kdkit.run(recipe, device="cpu", out=tmp_path / out, callbacks=[watch])
        assert not any("change when" in notice or "not cached" in notice for notice in watch.notices)
        return [entry["terms"] for entry in result.history["student"]]

    assert run("first") == run("again")


def test_a_student_in_double_precision_is_trained_in_it():
    student = Mlp().double()
    require_learned(distill(Mlp().double(), student, TensorDataset(INPUTS.double(), LABELS)))
    assert student.head.weight.dtype == torch.float64


def test_a_device_that_is_not_there_is_refused_in_a_sentence():
    device = next(name for name in ("xla", "mps") if not getattr(torch.backends, name, None))
    with pytest.raises(RecipeError, match=rf"device '{device}' is not available \(there are: cpu.*\): .{{10,200}}$"):
        distill(Mlp(), Mlp(), device=device)
