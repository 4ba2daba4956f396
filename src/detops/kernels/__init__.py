"""GPU kernels in Triton, one op a file; imported when the first GPU tensor comes."""
