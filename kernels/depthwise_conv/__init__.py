"""Depthwise convolution of tokens."""
