"""Trackers: other places where the metrics of a run are shown, each driven from a thread of its own."""
