"""Benchmarks on the CPU: each contender runs in its own process, is verified, then timed in turn with the others.

Order: channel, ceilings, reference, worker, measure, user_kernels, run.
"""
