"""The objective: pure functions of log-probabilities."""
