"""The affine map of a layer, and the matrix products in it."""
