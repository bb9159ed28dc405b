"""The experiments of the LRH-Net paper (Chauhan et al. 2022, arXiv:2204.08000), and its published results."""
