"""The affine map of a layer, and the matrix products in it.

Order: tiles, microkernel, operands, numba_cpu, choice, lt, narrow, cublaslt.
"""
