"""The whole losses of detector families, one module per family."""
