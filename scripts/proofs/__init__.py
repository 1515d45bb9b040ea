"""The proofs of scripts/torture: what hurts a run, and what must hold after that."""
