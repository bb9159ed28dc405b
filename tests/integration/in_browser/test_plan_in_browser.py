"""The drawing of a plan in a real browser: boxes and texts do not overlap, in light and dark."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import (
    Ema,
    LinearRamp,
    Match,
    MultiLevel,
    Net,
    Parallel,
    Peer,
    Recipe,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    check,
)
from kdkit.cli.plan_svg import draw_plan
from kdkit.engine.options import RunOptions
from kdkit.losses import Hint, PerLabelSoftTargets, SoftTargets
from tests.helpers.tiny import Mlp, plain_goal, tiny_data, tiny_net

pytestmark = pytest.mark.browser

TRAINING = Training(epochs=2, batch_size=4)
LONG = "a name as long as a name may be in a recipe WWW"


def multi_level(schedule, names=("teacher", "assistant", "third", LONG)):
    nets = [tiny_net(name, hidden=5 + index) for index, name in enumerate(names)]
    return Recipe(
        data=tiny_data(),
        schedule=schedule(*nets, truth=plain_goal(), kd_loss=SoftTargets(), training=TRAINING),
    )


def mutual():
    """Two students with long names that learn from each other, from an average, and from hidden layers."""
    teacher = tiny_net(f"{LONG} 0", trained=True, hidden=7)
    first, second = (tiny_net(f"{LONG} {index}") for index in (1, 2))
    hints = [
        LinearRamp(start=1, end=0, until=0.5)
        * Match(teacher, Hint(), student=Tap(getattr(first.module, layer)), target=Tap(getattr(teacher.module, layer)))
        for layer in ("hidden", "norm")
    ]
    objectives = {
        first: plain_goal() + Match(Peer(second), SoftTargets()) + hints[0] + Match(Ema(first), SoftTargets()),
        second: Match(Peer(first), SoftTargets()) + plain_goal(),
    }
    stages = [Stage(objectives, TRAINING, name="mutual"), Stage({first: plain_goal()}, TRAINING, name=LONG * 3)]
    return Recipe(data=tiny_data(), schedule=stages)


def wide_texts():
    """Classes with names of wide characters, and a loss with many options."""

    class Wide(Mlp):
        pass

    Wide.__name__ = "\u7f51\u7edc" * 20
    inputs, labels = torch.randn(8, 4), torch.ones(8, 3)
    data = TorchData(*(TensorDataset(inputs, labels) for _ in range(2)), classes=["a", "b", "c"], task="multilabel")
    teacher, student = Net("teacher", Wide(), trained=True), Net("W" * 40, Wide())
    objective = Truth(nn.BCEWithLogitsLoss()) + Match(teacher, PerLabelSoftTargets(temperature=3.0), label="kd")
    return Recipe(data=data, schedule=[Stage({student: objective}, TRAINING)])


def failing():
    teacher, student = tiny_net("teacher"), tiny_net("student", outputs=5)
    stages = [Stage({teacher: plain_goal()}, TRAINING), Stage({student: plain_goal()}, TRAINING)]
    return Recipe(data=tiny_data(), schedule=stages)


RECIPES = {
    "parallel": lambda: multi_level(Parallel),
    "sequential": lambda: multi_level(MultiLevel),
    "many": lambda: multi_level(MultiLevel, [f"net {index}" for index in range(12)]),
    "mutual": mutual,
    "wide": wide_texts,
    "failing": failing,
}


@pytest.fixture(scope="module", params=RECIPES)
def drawing(request):
    return draw_plan(check(RECIPES[request.param](), estimate=RunOptions(device="cpu")), LONG * 3)


# The second one is the widest of the usual fonts, which systems without the others have.
@pytest.fixture(scope="module", params=["Inter", "DejaVu Sans"])
def page(request, drawing, browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.svg"
    assert "1 Inter," in drawing
    path.write_text(drawing.replace("1 Inter,", f'1 "{request.param}",'), "utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
    page.goto(path.as_uri())
    yield page
    page.close()


def rectangles(page, selector):
    """Return the rectangles of elements as (left, top, right, bottom), with what they show."""
    script = """(selector) => [...document.querySelectorAll(selector)].map((element) => {
        const box = element.getBoundingClientRect();
        return [[box.left, box.top, box.right, box.bottom], element.textContent];
    })"""
    return [(tuple(box), text) for box, text in page.evaluate(script, selector)]


def overlap(first, second):
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def contains(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def test_boxes_do_not_overlap_and_are_in_their_cards(page):
    boxes, cards = rectangles(page, ".box"), rectangles(page, ".card")
    assert len(boxes) >= 2
    for (first, _), (second, _) in [*combinations(boxes, 2), *combinations(cards, 2)]:
        assert not overlap(first, second)
    for box, _ in boxes:
        assert any(contains(card, box) for card, _ in cards)


def test_texts_do_not_overlap_and_are_in_the_picture(page):
    texts = rectangles(page, "text")
    (picture, _), *_ = rectangles(page, "svg")
    for (first, text), (second, other) in combinations(texts, 2):
        assert not overlap(first, second), (text, other)
    for box, text in texts:
        assert contains(picture, box), text


def test_the_texts_of_a_net_lie_in_its_box_and_no_other_text_does(page):
    nodes = page.locator(".node")
    boxes = [box for box, _ in rectangles(page, ".box")]
    count = 0
    for index in range(nodes.count()):
        # in the order of the document, as the boxes are
        inside = nodes.nth(index).evaluate(
            "(node) => [...node.querySelectorAll('text')].map((text) => text.getBoundingClientRect())"
            ".map((box) => [box.left, box.top, box.right, box.bottom])"
        )
        assert inside
        assert all(contains(boxes[index], tuple(box)) for box in inside)
        count += len(inside)
    touching = [text for box, text in rectangles(page, "text") if any(overlap(box, other) for other in boxes)]
    assert len(touching) == count


def test_no_line_crosses_a_text_or_a_box(page):
    covered = rectangles(page, "text") + rectangles(page, ".box")
    left, top, right, bottom = np.array([box for box, _ in covered]).T
    lines = page.evaluate("""() => [...document.querySelectorAll('.line, .rail')].map((path) => {
        const length = path.getTotalLength();
        return [...Array(200).keys()].map((step) => path.getPointAtLength(length * step / 199)).map((p) => [p.x, p.y]);
    })""")
    for points in lines:
        x, y = np.array(points[1:-1]).T[:, :, None]  # without its ends, which are at the edges of boxes
        hit = (left + 1 < x) & (x < right - 1) & (top < y) & (y < bottom)  # (point, box)
        assert not hit.any(), [text for (_, text), is_hit in zip(covered, hit.any(0), strict=True) if is_hit]


@pytest.mark.parametrize("drawing", ["failing"], indirect=True)
@pytest.mark.parametrize("page", ["Inter"], indirect=True)
def test_the_drawing_follows_the_theme(page):
    def colour():
        return page.evaluate("getComputedStyle(document.querySelector('.paper')).fill")

    light = colour()
    page.emulate_media(color_scheme="dark")
    dark = colour()
    page.emulate_media(color_scheme="light")
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(17, 20, 25)")
