"""Measures the suite nms after its tests have passed.

python benchmarks/bench_nms.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("nms", "test_nms.py", description=__doc__)
