"""Benchmarks on an NVIDIA GPU: our kernels, PyTorch's and Triton's, timed by the device's own clock.

Order: budget, torch_peer, triton_peer, measure.
"""
