"""ECG for kdkit: data sets, lead views, the networks of LRH-Net, and the Challenge metric."""

import lazy_loader

# The public names are written once, in __init__.pyi. Each is imported when it is first used, so that kdkit loads this
# plugin without importing torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
