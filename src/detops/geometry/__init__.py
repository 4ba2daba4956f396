"""Boxes, points and grids, for training and inference alike."""
