"""Models of timm: normalisation, sizes, taps on stages and tokens, and the distilled DeiT."""

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import kdkit
from kdkit import AttentionTap, Images, Match, Net, Recipe, RecipeError, Stage, Tap, Training, Truth, timm_tap
from kdkit.errors import CheckError
from kdkit.losses import Hint
from kdkit.nets.taps import OpenTaps
from tests.helpers.distilled import CLASSES, ROWS, SIDE, Conv2d, cross_entropy, distilled, outputs, soft


class RecordsInput(nn.Module):
    """A wrapper that keeps the last batch of images that its network got."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen = torch.empty(0)

    def forward(self, image: Tensor) -> Tensor:
        self.seen = image.detach()
        return self.network(image)


def test_a_timm_teacher_and_its_student_have_separate_normalisation_and_size(images):
    tiny = timm.create_model("test_efficientnet", num_classes=CLASSES)
    view = Images.from_timm(tiny)
    large = Images(mean=view.mean, std=view.std, size=(48, 40))
    teacher = Net("teacher", RecordsInput(tiny), view=large, trained=True)
    student = Net("student", RecordsInput(Conv2d()), view=Images(mean=(0.5,) * 3, std=(0.25,) * 3))
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)

    batch = images.train.batch(torch.arange(ROWS), 0)
    teacher(batch), student(batch)
    config = tiny.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert tuple(config["mean"]) == (0.485, 0.456, 0.406)  # those of ImageNet, which differ from the student's
    resized = nn.functional.interpolate(batch.inputs, (48, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.module.seen, (resized - mean) / std)
    torch.testing.assert_close(student.module.seen, (batch.inputs - 0.5) / 0.25)


def test_images_of_a_timm_model_are_resized_to_the_size_of_its_training(images):
    tiny = timm.create_model("test_resnet", num_classes=CLASSES)
    net = Net("teacher", RecordsInput(tiny), view=Images.from_timm(tiny, resize=True), trained=True)
    outputs(net, images)
    assert net.module.seen.shape[-2:] == tuple(tiny.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.layers.PatchEmbed(2 * SIDE, 16),
        lambda: torchvision.models.VisionTransformer(2 * SIDE, 16, 1, 2, 16, 16, num_classes=CLASSES),
    ],
    ids=["timm", "torchvision"],
)
def test_a_transformer_that_takes_another_size_of_images_is_refused_with_the_view_that_resizes(make, images):
    stage = Stage({Net("student", make()): Truth(cross_entropy)}, Training(epochs=1))
    plan = kdkit.check(Recipe(data=images, schedule=[stage]))
    assert "resize the images for this network alone: Net(..., view=Images(size=" in plan.problems[0]


def vit(**options: Any) -> Any:
    return timm.create_model("test_vit", num_classes=CLASSES, img_size=SIDE, **options)


def as_map(tokens: Tensor) -> Tensor:
    """Drop the class token of (batch, 5, channels) and arrange the patches: (batch, 2, 2, channels)."""
    return tokens[:, 1:].unflatten(1, (2, 2))


def test_the_tokens_of_a_timm_vit_teach_the_maps_of_a_cnn(images):
    teacher = Net("teacher", vit(), view=Images(mean=(0.5,) * 3, std=(0.5,) * 3), trained=True)
    student = Net("student", Conv2d())
    hint = Hint()
    tokens = Tap(teacher.module.blocks[2], element=as_map, channels_last=True)
    distilled(
        student, Truth(cross_entropy) + Match(teacher, hint, student=Tap(student.module.conv), target=tokens), images
    )
    with torch.no_grad(), OpenTaps([Tap(student.module.conv), tokens]) as open_taps:
        batch = images.train.batch(torch.arange(2), 0)
        student(batch), teacher(batch)
        feature, target = open_taps.take()
        assert feature.shape == (2, 6, 8, 8)
        assert target.shape == (2, 64, 2, 2)
        assert hint.projector(feature).shape == target.shape


def test_tokens_with_channels_last_become_channels_second():
    module = vit().eval()
    plain, moved = Tap(module.blocks[0], channels_last=False), Tap(module.blocks[0])
    with torch.no_grad(), OpenTaps([plain, moved]) as open_taps:
        module(torch.rand(2, 3, SIDE, SIDE))
        tokens, features = open_taps.take()
    assert tokens.shape == (2, 5, 64)  # (batch, tokens, channels)
    torch.testing.assert_close(features, tokens.transpose(1, 2), rtol=0, atol=0)


def test_the_attention_of_a_timm_vit_is_matched_and_its_fused_kernel_is_restored(images):
    teacher, student = Net("teacher", vit(), trained=True), Net("student", vit(depth=2))
    layers = [teacher.module.blocks[5].attn, student.module.blocks[1].attn]
    fused = [layer.fused_attn for layer in layers]
    assert all(fused)  # the fused kernel computes no attention map, so that a tap has to turn it off
    seen = []

    def divergence(student_map: Tensor, teacher_map: Tensor) -> Tensor:
        seen.append((student_map.detach(), teacher_map))
        return nn.functional.kl_div(student_map.log(), teacher_map, reduction="batchmean")

    match = Match(teacher, divergence, student=AttentionTap(layers[1]), target=AttentionTap(layers[0]))
    distilled(student, Truth(cross_entropy) + match, images)
    assert [layer.fused_attn for layer in layers] == fused
    for attention in seen[-1]:
        assert attention.shape[2:] == (5, 5)  # a class token and 2x2 patches
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_an_attention_tap_does_not_change_the_output():
    module = vit().eval()
    image = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        plain = module(image)
        with OpenTaps([AttentionTap(module.blocks[0].attn)]):
            tapped = module(image)
    torch.testing.assert_close(tapped, plain, rtol=1e-4, atol=1e-5)  # another kernel, another rounding


STAGED: dict[str, Mapping[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": {"img_size": SIDE},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
}


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("index", [0, -1])
def test_a_tap_on_a_stage_of_a_timm_model_has_its_channels_second(name, index):
    module = timm.create_model(name, num_classes=CLASSES, **STAGED[name]).eval()
    with torch.no_grad(), OpenTaps([timm_tap(module, index)]) as open_taps:
        module(torch.rand(2, 3, SIDE, SIDE))
        (feature,) = open_taps.take()
    assert feature.shape[1] == list(module.feature_info)[index]["num_chs"]


MAPPED: dict[str, Mapping[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": SIDE},  # a class token
    "test_vit3": {"img_size": (SIDE, 2 * SIDE)},  # a register token, and a wide image
    "deit_tiny_distilled_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE},
    "samvit_base_patch16": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE},  # channels last, undeclared
}


@pytest.mark.parametrize("name", MAPPED)
def test_a_tap_on_a_stage_of_a_timm_model_is_the_map_of_its_features(name):
    module = timm.create_model(name, **MAPPED[name]).eval()
    pyramid = timm.create_model(name, features_only=True, out_indices=[1], **MAPPED[name]).eval()
    inner = getattr(pyramid, "model", pyramid)
    inner.load_state_dict({key: value for key, value in module.state_dict().items() if key in inner.state_dict()})
    image = torch.rand(2, 3, *module.patch_embed.img_size) if hasattr(module, "patch_embed") else torch.rand(2, 3, 8, 8)
    with torch.no_grad(), OpenTaps([timm_tap(module, 1)]) as open_taps:
        module(image)
        assert torch.equal(open_taps.take()[0], pyramid(image)[0])


def test_the_tokens_of_two_timm_vits_with_other_patches_are_compared_by_their_maps(images):
    teacher = Net("teacher", timm.create_model("test_vit", num_classes=CLASSES, img_size=SIDE), trained=True)
    student = Net("student", timm.create_model("test_vit3", num_classes=CLASSES, img_size=SIDE, patch_size=SIDE // 4))
    hint = Hint()
    match = Match(teacher, hint, student=timm_tap(student.module, 1), target=timm_tap(teacher.module, 1))
    distilled(student, Truth(cross_entropy) + match, images)
    assert hint.projector.positions == (2, 2)
    blocks = (Tap(net.module.blocks[1]) for net in (student, teacher))

    def notices(match: Match) -> tuple[str, ...]:
        return kdkit.check(Recipe(data=images, schedule=[Stage({student: 1.0 * match}, Training(epochs=1))])).notices

    match_blocks = Match(teacher, Hint(), **dict(zip(("student", "target"), blocks, strict=True)))
    assert any("compares 17 tokens with 5 as a sequence" in notice for notice in notices(match_blocks))
    assert not any("as a sequence" in notice for notice in notices(match))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_a_stage_of_a_timm_model_teaches_a_student_of_a_different_width(name, images):
    teacher = Net("teacher", timm.create_model(name, num_classes=CLASSES, **STAGED[name]), trained=True)
    small = timm.create_model("test_efficientnet", num_classes=CLASSES)
    student = Net("student", small, view=Images.from_timm(small))
    hint = Hint()
    match = Match(teacher, hint, student=timm_tap(student.module, 1), target=timm_tap(teacher.module, 1))
    distilled(student, Truth(cross_entropy) + match, images)
    teacher_width = list(teacher.module.feature_info)[1]["num_chs"]
    student_width = list(small.feature_info)[1]["num_chs"]
    assert teacher_width != student_width
    assert hint.projector.channels.weight.shape == (teacher_width, student_width)
    assert not any("projector" in key for key in student.module.state_dict())


def distilled_deit() -> Any:
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE}
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **options)
    module.set_distilled_training(True)
    return module


def test_the_distilled_deit_learns_the_labels_and_the_teacher_by_separate_heads(images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", distilled_deit(), element=0)
    by_token = Match(teacher, soft, student=Tap(student.module.head_dist))
    heads = {name: getattr(student.module, name).weight.clone() for name in ("head", "head_dist")}
    assert isinstance(student.module.train()(torch.rand(2, 3, SIDE, SIDE)), tuple)
    distilled(student, Truth(cross_entropy) + by_token, images)
    for name, before in heads.items():
        assert not torch.equal(getattr(student.module, name).weight, before)
    assert outputs(student, images).shape == (ROWS, CLASSES)


def test_the_distillation_head_of_the_deit_does_not_change_the_head_of_the_labels(images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", distilled_deit(), element=0)
    before = student.module.head.weight.clone()
    # 1.0 * Match: an objective without labels.
    distilled(student, 1.0 * Match(teacher, soft, student=Tap(student.module.head_dist)), images)
    torch.testing.assert_close(student.module.head.weight, before, rtol=0, atol=0)


def test_the_distilled_deit_is_refused_without_an_element(images):
    with pytest.raises(CheckError, match="tuple of 2, but one tensor was expected"):
        distilled(Net("student", distilled_deit()), Truth(cross_entropy), images)


def test_a_model_of_the_timm_registry_learns(images):
    make = kdkit.registry("models")["timm"]
    teacher = Net("teacher", make("test_resnet", num_classes=CLASSES), trained=True)
    student = Net("student", make("resnet18", num_classes=CLASSES, channels=(4, 4, 8, 8)), view=Images())
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)


def test_a_timm_model_may_be_on_the_hub(monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda name, **options: (name, options))
    create = kdkit.registry("models")["timm"]
    assert create("hf-hub:user/resnet.v1", num_classes=3) == ("hf-hub:user/resnet.v1", {"num_classes": 3})


def test_a_misspelt_timm_model_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match="resnet18"):
        kdkit.registry("models")["timm"]("resnet81")
