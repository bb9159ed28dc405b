"""Read the parameters of functions of user code."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

if sys.version_info >= (3, 14):
    from annotationlib import Format


def parameters_by_name(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by name. From Python 3.14 on, their annotations are text.

    There, an annotation may name what is imported for a type checker only, which fails if the annotation is evaluated.
    Raises TypeError or ValueError for a callable without a signature, such as some built-in functions.
    """
    if sys.version_info >= (3, 14):
        return inspect.signature(function, annotation_format=Format.STRING).parameters  # noqa: TID251
    return inspect.signature(function).parameters  # noqa: TID251
