"""Measures the suite centernet, in which gaussian_focal_loss_from_boxes does the work, after its tests have passed.

python benchmarks/bench_gaussian_focal_loss_from_boxes.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("centernet", "test_gaussian_focal_loss_from_boxes.py", "test_centernet_loss.py", description=__doc__)
