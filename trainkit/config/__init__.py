"""From YAML to a typed recipe, each value with its file and line."""
