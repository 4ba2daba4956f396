"""Targets and network outputs to losses."""
