"""Scaled dot-product attention.

Order: operations, by_query, by_block, numba_cpu, launches, cupy_raw, numba_cuda.
"""
