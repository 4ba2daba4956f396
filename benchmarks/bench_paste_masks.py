"""Measures the suite paste after its tests have passed.

python benchmarks/bench_paste_masks.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("paste", "test_paste_masks.py", description=__doc__)
