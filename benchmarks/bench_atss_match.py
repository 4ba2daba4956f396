"""Measures the suite atss after its tests have passed.

python benchmarks/bench_atss_match.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("atss", "test_atss_match.py", description=__doc__)
