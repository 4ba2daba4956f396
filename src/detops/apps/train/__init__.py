"""`detops train`."""
