"""Benchmarks on an NVIDIA GPU: our kernels, PyTorch's and Triton's, timed by the clock of the device.

Order: budget, clock, torch_peer, triton_peer, cases, measure, first_look, looks.
"""
