"""Train the stages of a recipe."""
