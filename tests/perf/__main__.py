"""`python -m tests.perf`: this tree alone, its rows, starting and idling, beside what the machine can do at all.

With the peer beside it: `python -m tests.perf.compare`. Takes the same arguments.
"""

import sys

from tests.perf.compare import main

sys.exit(main(["--no-peer", *sys.argv[1:]]))
