"""The command line: argv, Hydra, screens and sweeps; commands.py has the table of commands."""
