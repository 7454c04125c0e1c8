"""The machines of ray/_node and ray/_head in one process, under a virtual clock and seeded faults."""
