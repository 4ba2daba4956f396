"""Each op in whole-batch PyTorch, without a loop over boxes, for any device."""
