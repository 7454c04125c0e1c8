"""PROCESS node, one a machine: leases workers, counts resources, starts workers by fork, tails their logs.

`main.py` is where it starts, `shell.py` does the I/O, the other files decide.
"""
