"""The experiments of LRH-Net's paper as cells of a study, and how their results are set beside the paper's."""
