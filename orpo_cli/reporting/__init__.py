"""Consumers of events and readers of records: terminal, metrics file, the report of `orpo check`."""
