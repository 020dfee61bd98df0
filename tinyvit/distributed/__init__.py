"""Data-parallel training by several processes, over MPI: `mpiexec -n 4 tinyvit train RECIPE --distributed`.

Nothing here is imported without --distributed.

Order: watch, mpi, nccl, start, report, cost.
"""
