"""Copies of parameters in bfloat16, which matrix products take in place of the parameters."""
