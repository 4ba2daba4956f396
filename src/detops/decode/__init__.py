"""Network outputs to boxes."""
