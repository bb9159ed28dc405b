"""Tests of views, and of picking one tensor from the output of a module."""

import pickle
import re
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.googlenet import GoogLeNetOutputs
from transformers.modeling_outputs import BaseModelOutputWithPooling as BaseModelOutput
from transformers.modeling_outputs import SequenceClassifierOutput

from kdkit import Batch, Images, Inputs, Net, RecipeError, View
from kdkit.nets.elements import pick_tensor
from tests.helpers.open_stages import only_problem
from tests.helpers.tiny import Mlp, one_stage, plain_goal, tiny_data, tiny_net

Pair = namedtuple("Pair", "left right")
LABELS = torch.zeros(2)
ONE = torch.zeros(2, 3)


def batch(inputs):
    return Batch(inputs, LABELS)


@pytest.mark.parametrize(
    ("inputs", "count", "keywords"),
    [
        (torch.zeros(2, 3), 1, []),
        ((torch.zeros(2), torch.ones(2)), 2, []),
        ([torch.zeros(2), torch.ones(2)], 2, []),
        (Pair(torch.zeros(2), torch.ones(2)), 2, []),
        ({"tokens": torch.zeros(2), "mask": torch.ones(2)}, 0, ["tokens", "mask"]),
    ],
)
def test_inputs_become_arguments_or_keywords_by_their_form(inputs, count, keywords):
    args, kwargs = Inputs()(batch(inputs))
    assert len(args) == count
    assert list(kwargs) == keywords


def test_floating_point_inputs_are_converted_to_the_dtype_of_a_view():
    inputs = {"words": torch.zeros(2, dtype=torch.int64), "image": torch.rand(2, 3)}
    _, kwargs = Inputs(dtype=torch.bfloat16)(batch(inputs))
    assert torch.equal(kwargs["image"], inputs["image"].to(torch.bfloat16))
    assert kwargs["words"] is inputs["words"]
    images = torch.rand(2, 3, 4, 4)
    exact, converted = (Images(mean=0.5, dtype=dtype)(batch(images))[0][0] for dtype in (None, torch.bfloat16))
    assert torch.equal(converted, exact.to(torch.bfloat16))
    with pytest.raises(RecipeError, match=r"floating-point dtype, such as torch.bfloat16, or None; got torch.int64"):
        Inputs(dtype=torch.int64)


@pytest.mark.parametrize("view", [Inputs(), Images(mean=(0.5,), std=(0.2,), size=(4, 4))])
def test_views_can_be_pickled_and_compared(view):
    restored = pickle.loads(pickle.dumps(view))
    assert isinstance(view, View)
    assert restored == view
    assert restored.key == view.key


def test_the_key_of_a_view_changes_with_every_option():
    half = torch.bfloat16
    views = [Images(), Images(mean=(0.5,)), Images(std=(0.5,)), Images(size=(2, 2)), Images(dtype=half)]
    views += [Images(only="0"), Images(only=0), Images(channels_last=True)]
    views += [Inputs(), Inputs(only=(0,)), Inputs(dtype=half), Inputs(only=(0,), dtype=half)]
    assert len({view.key for view in views}) == len(views)


def test_images_are_normalised_by_channel():
    images = torch.rand(2, 3, 4, 5)
    (normalised,), _ = Images(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))(batch(images))
    for channel, (mean, std) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 4.0)]):
        torch.testing.assert_close(normalised[:, channel], (images[:, channel] - mean) / std)


def test_images_of_bytes_are_those_from_0_to_1():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    view = Images(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), size=(4, 4))
    assert not view.notice(images)
    assert torch.equal(view(batch(images))[0][0], view(batch(images / 255))[0][0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool])
def test_images_of_other_integers_are_refused(dtype):
    with pytest.raises(RecipeError, match=f"takes floats from 0 to 1, or uint8, .*; got {dtype}"):
        Images(mean=0.5, std=0.25)(batch(torch.ones(2, 1, 4, 4, dtype=dtype)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.zeros(2, 1, 4, 4), LABELS], r"a list of 0, 1; select it, for example with Images\(only=0\)"),
        (
            {"image": torch.zeros(2, 1, 4, 4), "id": LABELS},
            r"a dict of 'image', 'id'; select .* Images\(only='image'\)",
        ),
        ("text", "a str$"),
    ],
)
def test_images_among_other_inputs_must_be_selected(inputs, message):
    with pytest.raises(RecipeError, match=f"the view Images takes one tensor of images, but the inputs are {message}"):
        Images()(batch(inputs))


def test_images_of_arrays_in_a_mapping_are_those_of_a_tensor():
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "size": (4, 5)}
    inputs = {"image": images.movedim(1, -1), "name": ["a", "b"]}
    view = Images(**options, only="image", channels_last=True)
    torch.testing.assert_close(view(batch(inputs)), Images(**options)(batch(images)))
    assert Images(mean=0.5, only="image").notice({"image": 255 * torch.ones(1, 1, 2, 2)})


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_frames_of_videos_are_normalised_and_resized_as_images(channels_last):
    videos = torch.randint(0, 256, (2, 3, 3, 8, 6), dtype=torch.uint8)  # (batch, channels, time, height, width)
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "size": (4, 5)}
    inputs = videos.movedim(1, -1) if channels_last else videos
    (prepared,), _ = Images(**options, channels_last=channels_last)(batch(inputs))
    for time in range(3):
        (frame,), _ = Images(**options)(batch(videos[:, :, time]))
        torch.testing.assert_close(prepared[:, :, time], frame)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 8, 8, 3), r"\(batch, 3, height, width\); got \(2, 8, 8, 3\); pass Images\(channels_last=True\)"),
        ({}, (2, 4, 8, 8), r"\(batch, 3, height, width\); got \(2, 4, 8, 8\)$"),
        ({"channels_last": True}, (2, 3, 8, 8), r"\(batch, height, width, 3\); got \(2, 3, 8, 8\)$"),
        ({}, (2, 5, 3, 8, 8), r"\(batch, 3, time, height, width\); got .*; move the channels .*video\.movedim\(1, 0\)"),
    ],
)
def test_images_with_another_number_of_channels_than_means_are_refused(options, shape, message):
    with pytest.raises(RecipeError, match=f"the view Images has 3 means, so it takes images {message}"):
        Images(mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.3), **options)(batch(torch.zeros(shape)))


def test_images_are_resized_before_they_are_normalised():
    (normalised,), _ = Images(mean=(1.0,), std=(0.5,), size=(2, 3))(batch(torch.ones(2, 1, 8, 8)))
    assert normalised.shape == (2, 1, 2, 3)
    torch.testing.assert_close(normalised, torch.zeros_like(normalised))


@pytest.mark.parametrize(("scale", "text"), [(1, ""), (255, "takes images from 0 to 1, and these are from 0 to 255")])
def test_images_that_are_not_from_0_to_1_give_a_notice(scale, text):
    images = scale * torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    assert Images(mean=0.5, std=0.2).notice(images).startswith(text)
    assert bool(text) == bool(Images(mean=0.5, std=0.2).notice(images))
    assert not Images(size=(2, 2)).notice(images)  # which only resizes


def test_a_view_selects_images_by_one_key():
    with pytest.raises(RecipeError, match=r"must be a key or a position, such as 'image'; got \('image',\)"):
        Images(only=("image",))


def test_images_take_numbers_and_lists():
    assert Images(mean=0.5, std=[0.2], size=[4, 4]) == Images(mean=(0.5,), std=(0.2,), size=(4, 4))
    for size in (4, (4.5, 4), (0, 4)):
        with pytest.raises(RecipeError, match=r"the size of Images must be \(height, width\) or None; got "):
            Images(size=size)


@pytest.mark.parametrize("options", [{"std": (0.0,)}, {"std": (-1.0,)}, {"mean": (0.0, 0.0)}, {"std": "1"}])
def test_images_need_a_positive_deviation_for_each_mean(options):
    with pytest.raises(RecipeError, match="as many standard deviations"):
        Images(**options)


def test_images_take_the_normalisation_of_a_timm_model():
    model = nn.Identity()
    model.pretrained_cfg = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2), "input_size": (3, 8, 9)}
    assert Images.from_timm(model) == Images(mean=(0.4,) * 3, std=(0.2,) * 3)
    assert Images.from_timm(model, resize=True).size == (8, 9)
    view = Images.from_timm(model, only="image", channels_last=True)
    assert (view.only, view.channels_last) == ("image", True)


def test_a_model_without_a_normalisation_is_refused():
    with pytest.raises(RecipeError, match="is it a timm model"):
        Images.from_timm(nn.Linear(1, 1))


OUTPUT, OTHER = torch.arange(3.0), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("value", "element"),
    [
        (OUTPUT, None),
        ((None, OUTPUT), 1),
        ([OUTPUT], -1),
        ({"logits": OUTPUT}, "logits"),
        (Pair(None, OUTPUT), "right"),
        ({"deep": [OUTPUT]}, lambda value: value["deep"][0]),
        (OUTPUT, 0),
        (OUTPUT, "logits"),
        ({"logits": OUTPUT, "rest": OTHER}, None),
        ({"rest": OTHER, "last_hidden_state": OUTPUT}, None),
        ({"out": OUTPUT, "aux": OTHER}, None),  # as the segmentation models of torchvision
        ({"last_hidden_state": OTHER, "logits": OUTPUT}, None),
        (SequenceClassifierOutput(loss=torch.tensor(1.0), logits=OUTPUT), None),
        (BaseModelOutput(last_hidden_state=OUTPUT, pooler_output=OTHER), None),
        (GoogLeNetOutputs(OUTPUT, OTHER, OTHER), None),
        (SimpleNamespace(logits=OUTPUT), None),
        ({"boxes": OUTPUT}, None),
        ((OUTPUT, None), None),
        ([OUTPUT, ((OTHER, OTHER),)], None),  # a cache
        ((torch.tensor(0.5), OUTPUT), None),  # a loss
        ((torch.tensor([1, 2]), OUTPUT), None),  # indices
        (Pair(None, OUTPUT), None),
    ],
)
def test_one_tensor_is_picked_by_index_key_attribute_or_function(value, element):
    assert pick_tensor(value, element, "it") is OUTPUT


def test_the_map_of_an_attention_layer_is_not_taken_for_its_output():
    tokens, attention = torch.randn(2, 5, 8), torch.randn(2, 4, 5, 5)
    assert pick_tensor((tokens, attention), None, "it") is tokens
    for rest in (torch.randn(2, 5, 5), torch.randn(2, 4, 6, 5), torch.randn(2, 8, 4, 4)):
        with pytest.raises(RecipeError, match="one tensor was expected"):
            pick_tensor((tokens, rest), None, "it")


@pytest.mark.parametrize(
    ("value", "element", "message"),
    [
        ((OUTPUT, OUTPUT), None, "it gives a tuple of 2, but one tensor was expected"),
        (
            (OUTPUT, OTHER),
            None,
            "with element=..., an index, a key or a function; its tensors are 0 (3,), 1 (2, 3)",
        ),
        (Pair(OUTPUT, OTHER), None, "its tensors are 'left' (3,), 'right' (2, 3)"),
        ({"loss": torch.tensor(0.5)}, None, "its tensors are 'loss' ()"),
        (
            [{"boxes": OUTPUT}],
            None,
            "no term compares outputs, pass element=lambda outputs: torch.zeros(len(outputs), 1)",
        ),
        ({"hidden": (OUTPUT, OTHER)}, "hidden", "one tensor, such as element=lambda outputs: outputs['hidden'][-1]"),
        ((OUTPUT, None), 1, "it gives a tuple of 2, whose element 1 is None"),
        ((OUTPUT, None), 1, "create the model with attn_implementation='eager'"),
        ((OUTPUT,), 1, "create the model with attn_implementation='eager'"),
        (SequenceClassifierOutput(logits=OUTPUT), "loss", "return it if the inputs have labels"),
        ((OUTPUT, OTHER), lambda value: value, "but element=... returns a tuple of 2 for it; expected one tensor"),
        ({"a": 1}, None, "it gives a dict with 'a'"),
        ((OUTPUT,), 3, "it gives a tuple of 1, which has no element 3"),
        ({"a": OUTPUT}, "b", "it gives a dict with 'a', which has no element 'b'"),
        (Pair(1, 2), "middle", "has no element 'middle'"),
        ("text", None, "it gives a str"),
    ],
)
def test_an_output_without_the_element_is_described(value, element, message):
    with pytest.raises(RecipeError) as caught:
        pick_tensor(value, element, "it")
    assert message in str(caught.value)


def test_a_view_of_images_adds_its_steps_to_the_description_of_the_data():
    data = tiny_data()
    data.preparation = {"kind": "photos", "steps": [{"step": "decode"}]}
    described = Images(mean=(0.5,), std=(0.25,), size=(8, 6)).describe(data.preparation)
    assert described["kind"] == "photos"
    assert [step["step"] for step in described["steps"]] == ["decode", "resize", "normalise_channels"]
    assert described["steps"][1]["size"] == [8, 6]
    assert data.preparation["steps"] == [{"step": "decode"}]  # unchanged
    assert Images().describe({}).items() >= {"kind": "images", "range": [0, 1]}.items()


@pytest.mark.parametrize(
    ("only", "inputs", "count", "keywords"),
    [
        (("words", "lengths"), {"words": ONE, "lengths": ONE, "ids": ONE}, 0, {"words", "lengths"}),
        (("words",), {"words": ONE, "ids": ONE}, 1, set()),
        ((1,), (ONE, ONE), 1, set()),
        ((2, 0), [ONE, ONE, ONE], 2, set()),
    ],
)
def test_inputs_are_selected_by_key_or_position(only, inputs, count, keywords):
    args, kwargs = Inputs(only=only)(batch(inputs))
    assert (len(args), set(kwargs)) == (count, keywords)
    assert Inputs(only=only).key != Inputs().key


class Graph:
    """An object of tensors with a method `to`, as a batch of torch_geometric."""

    def __init__(self):
        self.x, self.edge_index, self.y = torch.zeros(4, 3), torch.zeros(2, 6, dtype=torch.int64), LABELS

    def to(self, device):
        return self


def test_attributes_of_an_object_are_selected():
    args, kwargs = Inputs(only=("x", "edge_index"), dtype=torch.float64)(batch(Graph()))
    assert (args, [*kwargs]) == ((), ["x", "edge_index"])
    assert [value.dtype for value in kwargs.values()] == [torch.float64, torch.int64]
    (args, kwargs) = Inputs(only=("x",))(batch(Graph()))
    assert (args[0].shape, kwargs) == ((4, 3), {})
    with pytest.raises(RecipeError, match="selects 'edges', which the inputs lack; there are: a Graph"):
        Inputs(only=("x", "edges"))(batch(Graph()))


def test_an_input_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(RecipeError, match="selects 'words', which the inputs lack; there are: 'ids'"):
        Inputs(only=("words",))(batch({"ids": ONE}))
    with pytest.raises(RecipeError, match="selects 'words', which the inputs lack; there are: 'graph', 'ids'"):
        Inputs(only=("words",))(batch({"graph": Graph(), "ids": ONE}))
    with pytest.raises(RecipeError, match="only must be a tuple of keys or positions"):
        Inputs(only="words")


@pytest.mark.parametrize("view", ["words", ["words"], nn.Identity(), Inputs])
def test_an_object_that_is_no_view_is_refused(view):
    with pytest.raises(RecipeError, match=r"the view of net 'student' must be Inputs\(only=.* such as lambda batch"):
        Net("student", nn.Linear(2, 2), view=view)


def test_a_view_that_returns_no_arguments_and_keywords_is_refused():
    class Bare:
        key = "bare"

        def __call__(self, batch):
            return batch.inputs

    with pytest.raises(RecipeError, match=r"must return \(args, kwargs\), such as .*; got a Tensor"):
        Net("student", nn.Linear(2, 2), view=Bare())(batch(ONE))


@pytest.mark.parametrize(
    ("call", "got"), [(([ONE], None), "a list and a NoneType"), ((ONE, {}), "a Tensor and a dict")]
)
def test_a_view_that_returns_other_arguments_or_keywords_is_refused(call, got):
    net = Net("student", nn.Linear(2, 2), view=lambda _: call)
    with pytest.raises(RecipeError, match=f"must return a tuple of arguments and a dict of keywords.*; got {got}"):
        net(batch(ONE))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (lambda _: None, "must be a mapping of JSON values; got None"),
        (lambda _: {"steps": {1}}, "must be a mapping of JSON values: Object of type set is not JSON serializable"),
        (lambda preparation: preparation["rate"], r"raises KeyError: 'rate' \(.*test_views.py, line \d+\)"),
    ],
)
def test_a_view_that_cannot_describe_its_inputs_is_a_problem_before_the_run(described, reason):
    class Described(Inputs):
        def describe(self, preparation):
            return described(preparation)

    recipe = one_stage(Net("student", Mlp(), view=Described()), plain_goal())
    recipe.data.preparation = {"steps": []}
    message = rf"the view of net 'student' does not suit the data: describe\(preparation\) of .* {reason}"
    assert re.match(message, only_problem(recipe))


def test_a_preparation_that_is_not_json_is_a_problem_before_the_run():
    recipe = one_stage(tiny_net("student"), plain_goal())
    recipe.data.preparation = {"mean": torch.ones(3)}
    assert "the preparation of the data must be a mapping of JSON values: Object of type Tensor" in only_problem(recipe)
