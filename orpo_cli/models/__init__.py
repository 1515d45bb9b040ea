"""Models: loading, adapters, the scorer with its attention and head, precision, answers."""
