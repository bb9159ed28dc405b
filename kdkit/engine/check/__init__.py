"""Check a recipe before anything is trained."""
