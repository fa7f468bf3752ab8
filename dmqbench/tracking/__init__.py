"""What a job tells while it runs: its record on disk, progress, and wandb runs that mirror the record."""
