"""From a command line to finished jobs: sweeps expanded, answered from the store, or launched."""
