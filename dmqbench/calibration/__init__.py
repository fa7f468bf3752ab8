"""What stages stand on: the loop over units with its checkpoints, captured inputs, views of layers, windows of calls."""
