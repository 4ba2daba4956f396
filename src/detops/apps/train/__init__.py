"""`detops train`: settings, data augmentation, networks and the training itself."""
