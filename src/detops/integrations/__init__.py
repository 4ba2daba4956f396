"""Wrappers of detops with other libraries' conventions."""
