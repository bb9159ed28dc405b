"""ClassifierTap: the outputs at every position, their mean, gradients, copies, and a run with SDD and CAT-KD."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm
from torch.utils.data import TensorDataset

import kdkit
from kdkit import ClassifierTap, Ema, Match, Net, Recipe, RecipeError, Stage, Tap, TorchData, Training, Truth
from kdkit.engine.check.plan import describe_tap
from kdkit.losses import CATKD, SDD
from kdkit.nets.taps import OpenTaps


class Pooled(nn.Module):
    """A convolution, average pooling and a classifier: (batch, 2, *positions) -> (batch, 3)."""

    def __init__(self, width=4, dimensions=1, bias=True):
        super().__init__()
        self.features = [nn.Conv1d, nn.Conv2d][dimensions - 1](2, width, 3, padding=1)
        self.pool = [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d][dimensions - 1](1)
        self.fc = nn.Linear(width, 3, bias=bias)

    def forward(self, signal):
        return self.fc(self.pool(self.features(signal)).flatten(1))


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (5, 2, 8)), (2, (5, 2, 4, 6))])
@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_over_positions_is_the_output_of_the_network(dimensions, shape, bias):
    net = Pooled(dimensions=dimensions, bias=bias)
    for tap in (ClassifierTap(net.features, classifier=net.fc), ClassifierTap(net.pool, "input", classifier=net.fc)):
        with OpenTaps([tap]) as open_taps:
            outputs = net(torch.randn(shape))
            classes = open_taps[tap]
        assert classes.shape == (5, 3, *shape[2:])
        torch.testing.assert_close(classes.flatten(2).mean(2), outputs)


def test_each_position_is_the_output_of_the_classifier_for_its_channels():
    net, signal = Pooled(), torch.randn(5, 2, 8)
    tap = ClassifierTap(net.features, classifier=net.fc)
    with OpenTaps([tap]) as open_taps:
        net(signal)
        classes = open_taps[tap]
    for position in range(8):
        torch.testing.assert_close(classes[:, :, position], net.fc(net.features(signal)[:, :, position]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_of_a_network_with_an_open_tap_captures_in_its_own_copy(duplicate):
    net = Pooled()
    tap = ClassifierTap(net.features, classifier=net.fc)
    with OpenTaps([tap]) as open_taps:
        copied_net, copied_taps = duplicate((net, open_taps))
        copied_taps.begin_pass()
        copied_net(torch.randn(5, 2, 8))
        assert (open_taps.unfired(), copied_taps.unfired()) == ([tap], [])


def test_the_classifier_and_the_layers_before_it_get_a_gradient():
    net = Pooled()
    tap = ClassifierTap(net.features, classifier=net.fc)
    with OpenTaps([tap]) as open_taps:
        net(torch.randn(5, 2, 8))
        open_taps[tap].square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
@pytest.mark.parametrize("compute", [lambda layer: prune.l1_unstructured(layer, "weight", amount=6), weight_norm])
def test_a_classifier_whose_weight_is_computed_is_that_of_the_current_weights_in_each_step(compute):
    net = Pooled()
    compute(net.fc)
    tap, optimizer = ClassifierTap(net.features, classifier=net.fc), torch.optim.SGD(net.parameters(), lr=0.1)
    with OpenTaps([tap]) as open_taps:
        for _ in range(2):
            open_taps.begin_pass()
            outputs, classes = net(torch.randn(5, 2, 8)), open_taps[tap]
            torch.testing.assert_close(classes.mean(2), outputs)
            (outputs.square().sum() + classes.square().sum()).backward()
            optimizer.step()


@pytest.mark.parametrize("classifier", [nn.Conv1d(4, 3, 1), nn.Conv2d(4, 3, 1)])
def test_a_convolution_with_a_kernel_of_one_is_a_classifier(classifier):
    tap = ClassifierTap(nn.Conv1d(2, 4, 1), classifier=classifier)
    assert tap.classify(torch.randn(5, 4, 8)).shape == (5, 3, 8)


def test_a_copy_with_its_network_has_the_classifier_of_the_copy():
    net = Pooled()
    tap = ClassifierTap(net.features, classifier=net.fc)
    memo = {}
    copied_net = copy.deepcopy(net, memo)
    copied = copy.deepcopy(tap, dict(memo))
    assert copied.module is copied_net.features
    assert copied.classifier is copied_net.fc


def test_taps_with_different_classifiers_differ():
    net = Pooled()
    tap, other = (ClassifierTap(net.features, classifier=layer) for layer in (net.fc, nn.Linear(4, 3)))
    assert tap == ClassifierTap(net.features, classifier=net.fc)
    assert len({tap, other, Tap(net.features)}) == 3


def test_the_plan_of_a_recipe_names_the_classes_and_the_layer():
    net = Net("net", Pooled())
    assert describe_tap(ClassifierTap(net.module.features, classifier=net.module.fc), [net]) == "classes at features"
    pooled = ClassifierTap(net.module.pool, "input", classifier=net.module.fc)
    assert describe_tap(pooled, [net]) == "classes at input of pool"


@pytest.mark.parametrize("classifier", [None, nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Sequential(nn.Linear(4, 3)), "fc"])
def test_a_classifier_that_is_no_linear_map_is_refused(classifier):
    with pytest.raises(RecipeError, match=r"a Linear layer or a convolution with kernel size 1.*net.module.fc\)"):
        ClassifierTap(nn.Conv1d(2, 4, 1), classifier=classifier)


def test_a_map_of_other_channels_is_refused():
    net = Pooled()
    tap = ClassifierTap(net.features, "input", classifier=net.fc)
    with OpenTaps([tap]), pytest.raises(RecipeError, match="takes 4 channels, but the map of Conv1d is"):
        net(torch.randn(5, 2, 8))


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 2, 16, generator=generator), torch.arange(count) % 3)


def recipe(loss, *, teacher=None, epochs=2, cache=None):
    torch.manual_seed(0)
    student = Net("student", Pooled(2))
    frozen = Net("teacher", Pooled(4), trained=True)
    taps = {net.name: ClassifierTap(net.module.features, classifier=net.module.fc) for net in (student, frozen)}
    if teacher == "ema":
        source, target = Ema(student, decay=0.5), taps["student"]
    else:
        source, target = frozen, taps["teacher"]
    objective = Truth(nn.CrossEntropyLoss()) + Match(source, loss, student=taps["student"], target=target)
    data = TorchData(samples(20, 0), samples(6, 1), samples(6, 2), classes=("a", "b", "c"))
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=epochs, batch_size=8))])


@pytest.mark.parametrize("loss", [SDD(), SDD(scales=(1, 2)), CATKD()])
@pytest.mark.parametrize("teacher", ["net", "ema"])
def test_losses_on_maps_of_classes_train_a_network_that_pools(loss, teacher):
    assert not kdkit.check(recipe(loss, teacher=teacher)).problems
    history = kdkit.run(lambda: recipe(loss, teacher=teacher), device="cpu").history
    assert len(history["student"]) == 2
