"""The drawing of a plan: its texts, its escapes, and what is drawn for each kind of teacher."""

import re
from xml.etree import ElementTree

import pytest
from torch import nn

from kdkit import (
    Ema,
    LinearRamp,
    Match,
    Net,
    Past,
    Peer,
    Recipe,
    Stage,
    Tap,
    Teachers,
    Training,
    Truth,
    check,
    model_loss,
)
from kdkit.cli.plan_svg import draw_plan
from kdkit.engine.options import RunOptions
from kdkit.losses import Hint, PerTeacher, SoftTargets
from kdkit.report.svg import fitting, text_width
from tests.helpers.tiny import one_stage, plain_goal, tiny_data, tiny_net

SVG = "{http://www.w3.org/2000/svg}"
TRAINING = Training(epochs=2, batch_size=4)


def texts(drawing):
    """Return the texts of a drawing as they are shown."""
    return [element.text or element[0].tail for element in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def drawn(recipe, **options):
    return draw_plan(check(recipe, estimate=RunOptions(device="cpu", **options)), "mine")


def test_boxes_have_modules_parameters_and_multiply_adds_and_arrows_have_losses_weights_and_layers(tmp_path):
    teacher, student = tiny_net("large", trained=True, hidden=7), tiny_net("small")
    hint = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    recipe = one_stage(student, 0.3 * plain_goal() + LinearRamp(start=1, end=0, until=0.5) * hint, epochs=2)
    shown = texts(drawn(recipe, out=tmp_path / "run"))
    for text in ("large", "small", "labels", "Mlp", "73 parameters", "49 multiply-adds", "35 multiply-adds"):
        assert text in shown, shown
    times = "\N{MULTIPLICATION SIGN}"
    losses = (f"0.3 {times} CrossEntropyLoss", f"1 to 0 {times} Hint")
    for text in (*losses, "hidden (4, 5)", "hidden (4, 7)", "outputs cached"):
        assert text in shown, shown
    assert "Projector (4, 5) → (4, 7), 42 parameters" in shown


def test_all_kinds_of_teachers_are_drawn():
    first, second = tiny_net("first", trained=True), tiny_net("second", trained=True)
    student, other = tiny_net("student"), tiny_net("other")
    terms = (
        plain_goal()
        + Match(Teachers(first, second), PerTeacher(SoftTargets()))
        + Match(Peer(other), SoftTargets())
        + Match(Ema(student), SoftTargets())
        + Match(Past(student), SoftTargets())
    )
    shown = texts(drawn(Recipe(data=tiny_data(), schedule=[Stage({student: terms, other: plain_goal()}, TRAINING)])))
    for text in ("first and second", "Teachers", "at the same step", "moving average", "at the last epoch"):
        assert text in shown, shown


class WithLoss(nn.Module):
    """A network that returns its outputs and the loss that it computes."""

    def __init__(self, outputs):
        super().__init__()
        self.layer = outputs

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return {"outputs": outputs, "loss": outputs.square().mean()}


def test_a_loss_that_the_network_computes_is_not_drawn_as_one_on_the_labels():
    module = WithLoss(tiny_net("student").module)
    net = Net("student", module, element="outputs")
    own_loss = Truth(model_loss, student=Tap(module, element="loss"))
    shown = texts(drawn(one_stage(net, own_loss)))
    assert "own loss" in shown
    assert "labels" not in shown
    assert {"own loss", "labels"} <= {*texts(drawn(one_stage(net, plain_goal() + own_loss)))}


def test_a_line_leads_from_each_trained_net_to_several_teachers():
    nets = [tiny_net(name) for name in ("first", "second")]
    loss = PerTeacher(SoftTargets())
    stages = [Stage({net: plain_goal()}, TRAINING) for net in nets]
    stages.append(Stage({tiny_net("student"): Match(Teachers(*nets), loss)}, TRAINING))
    drawing = drawn(Recipe(data=tiny_data(), schedule=stages))
    assert drawing.count('class="rail') == 2
    # The options of the loss do not fit; none is cut, such as SoftTargets(temperature=4.0.
    assert all(text.count("(") == text.count(")") for text in texts(drawing))


def test_a_net_that_is_trained_again_continues_from_its_stage():
    net = tiny_net("student")
    stages = [Stage({net: plain_goal()}, TRAINING, name=name) for name in ("warm-up", "main")]
    shown = texts(drawn(Recipe(data=tiny_data(), schedule=stages)))
    assert "continues from stage 1" in shown
    assert "1 warm-up" in [" ".join(text.split()) for text in shown]


def test_texts_of_a_recipe_are_escaped():
    class Script(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(inputs)

    Script.__name__ = "<script>alert(1)</script>"
    recipe = one_stage(Net("a", Script()), plain_goal())
    drawing = draw_plan(check(recipe), '</style><script>"&\x1b[31m')
    assert "<script" not in drawing
    assert "\x1b" not in drawing
    assert '</style><script>"&\\x1b[31m' in texts(drawing)


def test_a_plan_with_problems_is_drawn_as_far_as_it_goes():
    recipe = one_stage(tiny_net("student", outputs=5), plain_goal())
    shown = texts(drawn(recipe))
    assert "not run, because of a problem" in shown
    assert "Problems: 1; kdkit check lists them." in shown


def test_a_drawing_needs_nothing_else_and_has_both_themes():
    drawing = drawn(one_stage(tiny_net("student"), plain_goal()))
    assert "prefers-color-scheme: dark" in drawing
    assert re.findall(r"https?://[^\"]+", drawing) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href", drawing)


@pytest.mark.parametrize("text", ["student", "x" * 200, "W" * 200, "\u7f51" * 100, "\U0001f600" * 50, ""])
def test_texts_are_cut_to_their_width(text):
    shown = fitting(text, 12, 180)
    assert text_width(shown, 12) <= 180
    assert shown == text or shown.endswith("\N{HORIZONTAL ELLIPSIS}")
