"""Data sets: COCO annotations, images in batches, and the demo's generated data."""
