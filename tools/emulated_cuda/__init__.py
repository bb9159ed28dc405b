"""An emulated CUDA device, for tests of GPU code on a machine that has no GPU."""
