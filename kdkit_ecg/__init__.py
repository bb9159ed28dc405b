"""ECG for kdkit: data sets, lead views, the networks of LRH-Net, and the challenge metric."""

import lazy_loader

# The public names are listed in __init__.pyi alone. A name is imported on first use, so that kdkit can load this plugin
# without importing torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
