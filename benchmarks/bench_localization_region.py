"""Measures the suite region, in which localization_region does the work, after its tests have passed.

python benchmarks/bench_localization_region.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("region", "test_localization_region.py", "test_gfl_loss.py", description=__doc__)
