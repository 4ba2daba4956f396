"""Measures the suite gfl after its tests have passed.

python benchmarks/bench_gfl_positives.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("gfl", "test_gfl_positives.py", "test_gfl_loss.py", description=__doc__)
