"""The names, types, limits and meaning of every key, and the way from YAML to them."""
