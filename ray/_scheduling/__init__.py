"""Pure placement decisions: feasible, fits, choose. No I/O, no clock; used by the schedulers of ray/_node and
ray/_head.
"""
