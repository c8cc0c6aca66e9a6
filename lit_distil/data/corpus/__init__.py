"""Documents to tokens on disk."""
