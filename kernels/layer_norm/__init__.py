"""Layer normalization, alone and with the residual sum before it.

Order: operations, numba_cpu, cupy_raw, numba_cuda.
"""
