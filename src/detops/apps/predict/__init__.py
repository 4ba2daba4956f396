"""`detops predict`: listing and reading images, detectors, results files and pictures."""
