"""`detops bench`: one module per suite."""
