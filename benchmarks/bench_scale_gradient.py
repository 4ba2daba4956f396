"""Measures the suite gradient, in which scale_gradient does the work, after its tests have passed.

python benchmarks/bench_scale_gradient.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("gradient", "test_scale_gradient.py", description=__doc__)
