"""What a user writes: recipes, stages, objectives, schedules and training options."""
