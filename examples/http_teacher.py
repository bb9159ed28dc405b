"""A teacher behind HTTP: the student learns from a model that another process, or another machine, serves.

    kdkit run examples/http_teacher.py
    kdkit run examples/http_teacher.py --url http://my-server:8000 --model-version 2

Without a URL, the example serves a scikit-learn model in a thread. A request has the inputs of a batch as the bytes of
`numpy.save`, and the response the logits in the same form; for another protocol, change `HttpTeacher.__call__`. Each
training sample is requested once: later epochs, and later runs in the same folder, read the teacher cache as long as
the version of the model stays the same.
"""

import io
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from requests.adapters import HTTPAdapter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset, default_collate, random_split
from urllib3.util import Retry

from kdkit import KdkitError, Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def recipe(url: str = "", model_version: str = "1", timeout: float = 10.0, epochs: int = 30) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    url: URL of the teacher; if it is empty, a local server is started.
    model_version: version of the model behind the URL; change it with the model, so that outputs are requested again.
    timeout: seconds to wait for a response.
    epochs: number of epochs.
    """
    teacher = Net("teacher", HttpTeacher(url or local_server(), model_version, timeout=timeout))
    student = Net("student", nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    objective = 0.3 * Truth(nn.CrossEntropyLoss()) + 0.7 * Match(teacher, SoftTargets())
    training = Training(epochs=epochs, batch_size=32, optimizer=Optimizer(torch.optim.Adam, lr=5e-3))
    train, validation, test = digits()
    data = TorchData(train, validation, test, classes=list("0123456789"))
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])


class HttpTeacher:
    """Requests the logits of a batch, and retries failed requests. version: of the model, for the teacher cache."""

    def __init__(self, url: str, version: str, *, timeout: float = 10.0, retries: int = 4) -> None:
        self.url, self.version, self.timeout = url, version, timeout
        # Waits 0.2, 0.4, 0.8, ... seconds between attempts. A prediction may be repeated, although it is a POST.
        self.retry = Retry(
            retries, backoff_factor=0.1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=("POST",)
        )

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits of a batch, (batch, classes)."""
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=self.retry))
            try:
                response = session.post(self.url, data=to_bytes(inputs.cpu().numpy()), timeout=self.timeout)
                response.raise_for_status()
                logits = from_bytes(response.content)
            except (requests.RequestException, ValueError, EOFError) as error:
                raise KdkitError(
                    f"the teacher at {self.url} gives no logits ({error}); start its server, or pass another --url"
                ) from error
        return torch.from_numpy(logits).float()


class ModelServer(ThreadingHTTPServer):
    """Serves a model on a free port of this machine. failures: how many requests fail first, to test the client."""

    def __init__(self, model: Callable[[NDArray[Any]], NDArray[Any]], *, failures: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.failures = model, failures
        self.requested: list[int] = []  # the number of samples of each request that succeeded
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_POST(self) -> None:
        """Respond with the outputs of the model."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503, "the model is being loaded")
            return
        inputs = from_bytes(body)
        self.server.requested.append(len(inputs))
        content = to_bytes(self.server.model(inputs))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def to_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def from_bytes(content: bytes) -> NDArray[Any]:
    """Return the array in the bytes of a .npy file. Raises ValueError or EOFError if they are anything else."""
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


@cache
def local_server() -> str:
    """Start a server of a model of the training digits, once per process, and return its URL."""
    train = digits()[0]
    pixels, labels = default_collate([train[row] for row in range(len(train))])
    model = LogisticRegression(max_iter=1000).fit(pixels.numpy(), labels.numpy())
    return ModelServer(model.decision_function).url


def digits() -> list[Subset[tuple[Tensor, ...]]]:
    """Return 500 digits for training, 297 for validation, and 1000 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    samples = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))  # pixels are 0 to 16
    return random_split(samples, (500, 297, 1000), torch.Generator().manual_seed(0))
