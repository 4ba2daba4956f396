"""Images to tensors, and network outputs to results."""
