"""Tools for users: checks of values, counts of synchronisations, the machine, and time."""
