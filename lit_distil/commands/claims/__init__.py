"""The command `claims`."""
