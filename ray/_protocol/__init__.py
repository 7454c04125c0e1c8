"""What travels between processes: frame types, identities, resource amounts. No I/O, no state."""
