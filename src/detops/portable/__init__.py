"""Each op in whole-batch PyTorch: no loop over boxes, no host synchronisation, on any device."""
