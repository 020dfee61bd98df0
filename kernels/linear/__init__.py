"""The affine map of a layer, and the matrix products that it is made of."""
