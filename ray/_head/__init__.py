"""What a cluster decides in one place: actors, jobs, errors, node health, placement. Pure machines and one service.

Runs inside the node process on one machine (composed by ray/_node), in a process of its own on a cluster. See README.md
for the signatures that the shell builds against.
"""
