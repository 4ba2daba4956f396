"""Measures the suite masks after its tests have passed.

python benchmarks/bench_masks_to_rle.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("masks", "test_masks_to_rle.py", "test_paste_masks.py", "test_instance_masks.py", description=__doc__)
