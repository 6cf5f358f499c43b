"""Parameters, MACs, memory and GPU occupancy of networks, computed from their configurations."""
