"""What can be said about scored pairs: estimates with intervals, comparisons of two models, the part of length."""
