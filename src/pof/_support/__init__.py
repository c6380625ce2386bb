"""What everything stands on: batches, temporary changes to modules, random numbers, processes, precision."""
