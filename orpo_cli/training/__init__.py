"""Whatever changes a weight, and the events it yields."""
