"""What stages stand on: the loop over units with checkpoints, captured inputs, layer views, windows of calls."""
