"""What networks cost, counted from their configurations: parameters, MACs, memory, GPU occupancy."""
