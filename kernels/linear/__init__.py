"""The affine map of a layer, and the matrix products in it.

Order: microkernel, operands, numba_cpu, lt, cublaslt.
"""
