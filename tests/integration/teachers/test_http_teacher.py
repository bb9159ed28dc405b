"""The example of a teacher behind HTTP: requests are repeated, samples are requested once, and failures are named."""

import socket

import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdkitError, Match, Net, Recipe, Stage, Training
from kdkit.losses import SoftTargets
from tests.helpers.command_line import ROOT
from tests.helpers.modules import load_module
from tests.helpers.stages import data

EXAMPLE = ROOT / "examples" / "http_teacher.py"


@pytest.fixture(scope="module")
def example():
    return load_module(EXAMPLE)


@pytest.fixture
def server(example):
    server = example.ModelServer(lambda inputs: 3 * inputs[:, :3])
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def closed_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def recipe(teacher, epochs=3):
    student = Net("student", nn.Linear(6, 3))
    stage = Stage({student: Match(Net("teacher", teacher), SoftTargets())}, Training(epochs=epochs, batch_size=8))
    return Recipe(data=data(), schedule=[stage])


def test_a_server_that_fails_twice_is_requested_again(example, server):
    server.failures = 2
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(example.HttpTeacher(server.url, "1")(inputs), 3 * inputs[:, :3])
    assert server.failures == 0
    assert server.requested == [5]


def test_each_training_sample_is_requested_once(example, server, tmp_path):
    teacher = example.HttpTeacher(server.url, "1")
    kdkit.run(lambda: recipe(teacher, epochs=1), device="cpu", out=tmp_path / "one")
    after_one_epoch = sum(server.requested)
    server.requested.clear()
    kdkit.run(lambda: recipe(teacher, epochs=6), device="cpu", out=tmp_path / "two")
    # The 32 training samples are cached; what remains are the checks, the audit, and the 48 others for the metrics.
    assert sum(server.requested) <= after_one_epoch - 32 + 8
    server.requested.clear()
    kdkit.run(lambda: recipe(example.HttpTeacher(server.url, "2")), device="cpu", out=tmp_path / "three")
    assert sum(server.requested) >= after_one_epoch  # another model


def test_a_server_that_is_down_is_named(kdkit_here, closed_url):
    result = kdkit_here("run", EXAMPLE, "--url", closed_url, "--timeout", "1", "--device", "cpu")
    assert result.code == 2
    assert closed_url in result.err
    assert "start its server" in result.err
    assert "Traceback" not in result.err


def test_a_server_that_goes_down_ends_the_run_with_its_url(example, server):
    teacher = example.HttpTeacher(server.url, "1", retries=0)

    def failing(inputs):
        if len(inputs) == 8:  # of the training, after the checks with four samples
            server.failures = 1000
        return teacher(inputs)

    failing.version = "1"
    with pytest.raises(KdkitError, match=server.url):
        kdkit.run(recipe(failing), device="cpu")


@pytest.mark.parametrize("content", [b"", b"<html>busy</html>"])
def test_a_response_that_is_no_array_is_named(content, example, server, monkeypatch):
    class Page:
        """A response of a proxy in front of the server."""

        def raise_for_status(self):
            return None

    Page.content = content
    monkeypatch.setattr(example.requests.Session, "post", lambda *_args, **_options: Page())
    with pytest.raises(KdkitError, match=server.url):
        example.HttpTeacher(server.url, "1", retries=0)(torch.randn(5, 6))
