"""Measures the suite heatmap, in which draw_gaussians does the work, after its tests have passed.

python benchmarks/bench_draw_gaussians.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

from runner import run

if __name__ == "__main__":
    run("heatmap", "test_draw_gaussians.py", "test_heatmap.py", description=__doc__)
