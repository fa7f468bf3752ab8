"""Networks that others trained and ship inside Python packages, read from there as diffusers networks."""
