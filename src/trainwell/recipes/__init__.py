"""The recipes, as data: each file holds config keys, a paragraph `about` it, and the `bands` its losses fall in."""
