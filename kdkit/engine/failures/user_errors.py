"""Add the position in the run to an error of user code, such as a loss or a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdkit.data.read_errors import explain_ended_worker
from kdkit.engine.failures.network_errors import index_advice
from kdkit.errors import KdkitError


@contextmanager
def located(position: str | Callable[[], str], folder: Path | None) -> Iterator[None]:
    """Add notes to an error of user code: its position in the run, and how to resume. Errors of kdkit pass unchanged.

    The error keeps its class and traceback, which the author of the code needs. folder: of the run, or None.
    Raises DataError if a data worker process ended, because torch raises that error at an arbitrary position.
    """
    try:
        yield
    except KdkitError:
        raise
    except Exception as error:
        location = position if isinstance(position, str) else position()
        ended = explain_ended_worker(error, f"a batch that workers read ahead in {location}")
        if ended is not None:
            raise ended from error
        advice = index_advice(error)
        is_of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        if is_of_compiler or "torch.compile" in str(error):  # for example, for second derivatives
            advice = "; torch.compile does not take all networks: run without it"
        elif "backward through the graph a second time" in str(error):
            advice = "; detach what a network or a loss keeps from one batch to the next: tensor.detach()"
        error.add_note(f"kdkit: raised by code of the recipe or a library that it uses, in {location}{advice}")
        if folder is not None:
            error.add_note(
                "kdkit: to resume the run after the cause is corrected (with --force or force=True if that changes the "
                f"recipe): kdkit run FILE --out {folder} --resume, or kdkit.run(..., out={str(folder)!r}, resume=True)"
            )
        raise
