"""`detops train`: settings, data augmentation, networks, the training itself and its report."""
