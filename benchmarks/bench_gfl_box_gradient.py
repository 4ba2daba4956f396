"""Measures the suite gfl_boxes after its tests have passed.

python benchmarks/bench_gfl_box_gradient.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("gfl_boxes", "test_gfl_box_gradient.py", description=__doc__)
