"""The command `benchmark`."""
