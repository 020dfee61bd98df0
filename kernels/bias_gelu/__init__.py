"""GELU of a sum with a bias."""
