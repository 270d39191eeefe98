"""The recipes, as data: each YAML file holds config keys, a paragraph `about` it, and the `bands` of losses it gives."""
