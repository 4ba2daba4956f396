"""A detector family's whole loss, one module each."""
