"""`detops predict`."""
