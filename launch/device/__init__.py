"""What fits the device of this machine: batches, a forecast of every stage, errors of memory."""
