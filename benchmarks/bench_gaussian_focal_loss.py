"""Measures the suite focal, in which gaussian_focal_loss does the work, after its tests have passed.

python benchmarks/bench_gaussian_focal_loss.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("focal", "test_gaussian_focal_loss.py", description=__doc__)
