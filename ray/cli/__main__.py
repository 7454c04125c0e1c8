"""`python -m ray.cli ...` is the command `ray ...` of that interpreter."""

import sys

from ray.cli import main

sys.exit(main())
