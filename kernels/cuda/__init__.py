"""What the CUDA kernels share: hardware primitives, the compiler, and launching."""
