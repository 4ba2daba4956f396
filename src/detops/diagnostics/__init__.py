"""For users to check: values, synchronisations, the machine, time."""
