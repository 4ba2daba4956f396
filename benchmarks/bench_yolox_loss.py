"""Measures the suite yolox after its tests have passed.

python benchmarks/bench_yolox_loss.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("yolox", "test_yolox_loss.py", "test_yolox_criterion.py", description=__doc__)
