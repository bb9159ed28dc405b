"""A general toolkit for knowledge distillation in PyTorch.

`distill` trains a student in one call, `run` trains a `Recipe`, and a `Distiller` works in your own training loop.
"""

import lazy_loader

__version__ = "0.1.0.dev0"

# The public names are written once, in __init__.pyi. Each is imported when it is first used, so that `kdkit --help`
# does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
