"""GPU kernels in Triton, one op per file; imported when the first GPU tensor comes."""
