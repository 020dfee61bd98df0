"""Many kernels in one call: what `tinyvit.program` runs a model with.

Order: places, numba_cpu, descriptors, moves, calls.
"""
