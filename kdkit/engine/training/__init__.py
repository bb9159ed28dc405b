"""The training loop of a stage: its epochs, its steps and their capture, its validation and its checkpoints."""
