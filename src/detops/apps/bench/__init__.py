"""`detops bench`: a module for each suite."""
