"""Measures the suite preprocess after its tests have passed.

python benchmarks/bench_resize_normalize_pad.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("preprocess", "test_resize_normalize_pad.py", "test_preprocess.py", description=__doc__)
