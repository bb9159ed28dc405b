"""A batch is moved, cut and pinned whatever container holds its inputs."""

import collections
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import Dataset

import kdkit
from kdkit import Batch, DataError, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.data.batch import collate, content_of, holds_only_tensors, nested_tensors
from kdkit.data.device_data import KeptSamples
from kdkit.data.samples import SampleKeys
from kdkit.engine.training.capture import _StaticInputs


class Encoding(collections.UserDict):
    """Like the BatchEncoding of transformers: it has state in addition to its items."""

    def __init__(self, data=None, encodings="words"):
        super().__init__(data)
        self.encodings = encodings


class Shared(collections.abc.MutableMapping):
    """A mapping whose constructor takes something else, and whose copy shares its items."""

    def __init__(self, name, items):
        self.name, self.items_by_key = name, dict(items)

    def __getitem__(self, key):
        return self.items_by_key[key]

    def __setitem__(self, key, value):
        self.items_by_key[key] = value

    def __delitem__(self, key):
        del self.items_by_key[key]

    def __iter__(self):
        return iter(self.items_by_key)

    def __len__(self):
        return len(self.items_by_key)


@dataclass(frozen=True, slots=True)
class Signals:
    """A frozen dataclass with a field that __init__ does not take."""

    x: torch.Tensor
    length: int = field(default=3, init=False)


def rows(shift=0.0):
    return torch.arange(6.0)[:, None] + shift


def default_dict():
    value = collections.defaultdict(list)
    value["x"] = rows()
    return value


CONTAINERS = {
    "dict": lambda: {"x": rows()},
    "OrderedDict": lambda: collections.OrderedDict(x=rows()),
    "UserDict": lambda: collections.UserDict(x=rows()),
    "Encoding": lambda: Encoding({"x": rows()}),
    "defaultdict": default_dict,
    "nested": lambda: Encoding({"inside": {"x": rows()}}),
}


def only_tensor(batch):
    (tensor,) = nested_tensors(batch.inputs)
    return tensor


@pytest.mark.parametrize("name", [*CONTAINERS, "proxy", "shared", "dataclass"])
def test_inputs_in_any_container_are_moved_and_cut_like_a_dict(name):
    special = {
        "proxy": lambda: MappingProxyType({"x": rows()}),
        "shared": lambda: Shared("name", {"x": rows()}),
        "dataclass": lambda: Signals(rows()),
    }
    batch = Batch({**CONTAINERS, **special}[name](), torch.arange(6))
    assert only_tensor(batch.to(torch.device("meta"))).device.type == "meta"
    assert only_tensor(batch.rows(torch.tensor([4, 1]))).tolist() == [[4.0], [1.0]]
    assert torch.equal(only_tensor(batch), rows())  # the batch itself stays as it was


class Graphs:
    """Graphs of a batch; as those of torch_geometric, they are moved in place."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)
        return self


def test_an_object_with_a_method_to_is_moved_as_a_copy_and_is_not_divided_into_samples():
    graphs = Graphs(rows())
    moved = Batch({"graphs": graphs, "more": rows()}, torch.arange(6)).to(torch.device("meta"))
    assert moved.inputs["graphs"].x.device.type == moved.inputs["more"].device.type == "meta"
    assert graphs.x.device.type == "cpu"
    for inputs in (graphs, {"edges": torch.zeros(2, 9), "nodes": rows()}, torch.tensor(1.0), torch.eye(6).to_sparse()):
        with pytest.raises(DataError, match="samples cannot be selected from inputs that do not have an entry"):
            Batch(inputs, torch.arange(6)).rows(torch.tensor([0]))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_mapping_keeps_its_type_if_it_can_be_built_from_a_dict(name):
    batch = Batch(CONTAINERS[name](), torch.arange(6))
    assert type(batch.rows(torch.tensor([0])).inputs) is type(batch.inputs)


@pytest.mark.parametrize("name", ["dict", "UserDict", "Encoding", "defaultdict"])
def test_the_inputs_of_a_mapping_have_no_labels(name):
    sample = CONTAINERS[name]()
    sample.update({"mask": rows(), "label": 1})
    inputs, label, _ = SampleKeys().split(sample)
    assert (type(inputs), [*inputs], label) == (type(sample), ["x", "mask"], 1)
    assert [*sample] == ["x", "mask", "label"]


def test_a_mapping_that_cannot_be_built_from_a_dict_becomes_one():
    cut = Batch(Shared("name", {"x": rows()}), torch.arange(6)).rows(torch.tensor([0]))
    assert type(cut.inputs) is dict


def test_a_dataclass_keeps_its_type_and_its_other_fields():
    signals = Signals(rows())
    object.__setattr__(signals, "length", 7)
    cut = Batch(signals, torch.arange(6)).rows(torch.tensor([2])).inputs
    assert (type(cut), cut.length, cut.x.tolist()) == (Signals, 7, [[2.0]])


def test_texts_are_selected_if_there_is_one_for_each_sample():
    inputs = {"texts": [*"abcdef"], "pairs": [tuple("ghijkl"), tuple("mnopqr")], "prompts": ["cat", "dog"]}
    cut = Batch(inputs, torch.arange(6)).rows(torch.tensor([4, 1])).inputs
    assert cut == {"texts": ["e", "b"], "pairs": [["k", "h"], ["q", "n"]], "prompts": ["cat", "dog"]}


@pytest.mark.parametrize("count", [1, 2, 3, 4])  # images have three channels, and the network has two arguments
def test_lists_of_images_and_boxes_are_selected_by_their_items(count):
    images = [torch.full((3, 5, 6 + row), row) for row in range(count)]
    targets = [{"boxes": torch.full((row, 4), row)} for row in range(count)]
    for inputs in (([*images], [*targets]), (tuple(images), tuple(targets))):
        cut = Batch(inputs, torch.zeros(count)).rows(torch.tensor([count - 1, 0])).inputs
        assert [image.shape[2] for image in cut[0]] == [5 + count, 6]
        assert [len(target["boxes"]) for target in cut[1]] == [count - 1, 0]
    assert Batch({"images": images}, torch.zeros(count)).is_divisible
    assert not Batch((images, torch.zeros(7)), torch.zeros(count)).is_divisible


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (lambda: {"sequences": pack_sequence([torch.zeros(2, 3)] * 4)}, r"\(8, 3\), \(2,\)"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2, 3)] * 4), "nested"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2, 3)] * 4, layout=torch.jagged), "nested"),
        (lambda: [torch.zeros(9)] * 4, r"\(9,\), \(9,\), \(9,\), \.\.\."),
        (type("Graph", (), {"to": lambda self, device: self}), "a Graph"),
    ],
    ids=["packed sequence", "nested", "jagged", "tensors", "an object"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_inputs_cannot_be_selected_and_are_named(inputs, got):
    batch = Batch(inputs(), torch.zeros(4))
    assert not batch.is_divisible
    with pytest.raises(DataError, match=f"such as a batch of graphs; got {got} for 4 labels"):
        batch.rows(torch.tensor([0]))


def test_a_list_of_arguments_is_selected_by_the_rows_of_its_tensors():
    first, second = Batch([rows()[:2], rows()[:2]], torch.zeros(2)).rows(torch.tensor([1])).inputs
    assert first.tolist() == second.tolist() == [[1.0]]


def test_dataclasses_are_collated_by_field_also_inside_a_pair():
    first, second = Signals(torch.zeros(3)), Signals(torch.ones(3))
    inputs, labels = collate([((first, torch.zeros(2)), 0), ((second, torch.ones(2)), 1)])
    assert torch.equal(inputs[0].x, torch.stack([torch.zeros(3), torch.ones(3)]))
    assert inputs[0].length.tolist() == [3, 3]
    assert inputs[1].shape == (2, 2)
    assert labels.tolist() == [0, 1]


def test_mappings_with_dataclasses_are_collated_by_key():
    first, second = Signals(torch.zeros(3)), Signals(torch.ones(3))
    batch = collate([{"a": first, "b": second}, {"b": second, "a": first}])
    assert [batch[name].x.sum().item() for name in "ab"] == [0, 6]
    with pytest.raises(RuntimeError, match="of equal size"):
        collate([{"a": first, "b": second}, {"a": first}])


@pytest.mark.parametrize("name", [*CONTAINERS, "dataclass"])
def test_a_captured_step_reads_inputs_of_any_container(name):
    def batch(shift=0.0):
        value = CONTAINERS[name]() if name in CONTAINERS else _signals_without_length()
        inputs = Batch(value, torch.arange(6)).inputs
        for tensor in nested_tensors(inputs):
            tensor.add_(shift)
        return Batch(inputs, torch.arange(6))

    static = _StaticInputs.like(batch(), {})
    assert static.fill(batch(shift=1.0), {})
    assert torch.equal(only_tensor(static.batch), rows(shift=1.0))


@dataclass
class Plain:
    x: torch.Tensor


def _signals_without_length():
    return Plain(rows())


def test_samples_with_items_that_are_no_tensors_are_not_kept_on_a_device():
    assert holds_only_tensors({"x": rows(), "more": [rows()]})
    assert not holds_only_tensors({"x": rows(), "names": ["a"] * 6})
    assert not holds_only_tensors(Signals(rows()))

    class Named(kdkit.Split):
        ids = torch.arange(6)

        def batch(self, rows, draw):
            return Batch({"x": rows[:, None].float(), "names": [f"{row}" for row in rows]}, rows % 3, self.ids[rows])

    split = Named()
    kept = KeptSamples(split, 1, torch.device("cpu"), share=0.5)
    kept.keep(split.batch(torch.arange(6), 0), torch.arange(6), 0)
    assert not kept.has((torch.arange(6),), 0)


class Samples(Dataset):
    """Samples whose inputs are built by `wrap`."""

    def __init__(self, wrap):
        self.wrap = wrap

    def __len__(self):
        return 12

    def __getitem__(self, row):
        inputs = torch.randn(4, generator=torch.Generator().manual_seed(row))
        return self.wrap(inputs), row % 3


class Net4(nn.Module):
    """A network that takes the keyword `x`, or an object with the attribute `x`."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(getattr(x, "x", x))


@pytest.mark.parametrize("wrap", [lambda x: Encoding({"x": x}), Plain], ids=["mapping", "dataclass"])
def test_a_run_with_inputs_in_a_container_has_the_metrics_of_a_run_with_tensors(wrap):
    def accuracy(wrap):
        torch.manual_seed(0)
        data = TorchData(Samples(wrap), Samples(wrap), classes=["a", "b", "c"], draws=1)
        stage = Stage({Net("student", Net4()): Truth(nn.CrossEntropyLoss())}, Training(epochs=2, batch_size=4))
        run = kdkit.run(Recipe(data=data, schedule=[stage]))
        return [epoch["terms"] for epoch in run.history["student"]]

    assert accuracy(wrap) == accuracy(lambda x: x)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(3), torch.ones(1, 1).expand(1, 3), torch.tensor([1 + 2j]).conj(), torch.zeros(0, 3)],
    ids=["expanded", "expanded row", "conjugated", "empty"],
)
def test_the_content_of_a_view_is_that_of_its_copy(tensor):
    assert [*content_of(tensor)] == [*content_of(torch.tensor(tensor.tolist()).view(tensor.shape))]


def test_the_fingerprint_sees_the_fields_of_a_dataclass():
    first, second = (
        TorchData(Samples(lambda x, shift=shift: Plain(x + shift)), Samples(Plain), classes=["a", "b", "c"], draws=1)
        for shift in (0, 1)
    )
    assert first.fingerprint != second.fingerprint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_batch_is_on_the_cpu_as_soon_as_it_is_moved_there():
    batch = Batch({"a": torch.zeros(2, device="cuda")}, torch.zeros(2, device="cuda")).to(torch.device("cpu"))
    assert not any(tensor.is_pinned() for tensor in (batch.inputs["a"], batch.labels))  # as copies in the background
