"""Clusters that are only computed: the schedulers of ray/_node and ray/_head in one process, under a virtual clock.

No I/O, no processes. `ray simulate` runs on it; so do the simulations of faults in tests/simulation.

    agenda.py     the clock, and what happens when
    planned.py    a cluster of which nothing fails: nodes, head and what passes between them
    asking.py     the drivers of its work, and when each of their tasks began
    plan.py       what a person asks, and the numbers that they get
"""
