"""Boxes, points and grids: what training and inference both stand on."""
