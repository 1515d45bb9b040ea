"""The command line: one module a command; nothing outside this room knows Hydra."""
