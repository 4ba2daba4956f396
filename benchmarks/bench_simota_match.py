"""Measures the suite simota after its tests have passed.

python benchmarks/bench_simota_match.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("simota", "test_simota_match.py", description=__doc__)
