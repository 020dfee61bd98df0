"""GELU of each element."""
