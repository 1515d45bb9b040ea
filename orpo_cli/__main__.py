"""`python -m orpo_cli` is the command `orpo`."""

import sys

from orpo_cli.cli.main import main

sys.exit(main())
