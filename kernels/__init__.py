"""Fused kernels, installed and imported as `tinyvit.kernels`: the registry, and one folder for each operation."""
