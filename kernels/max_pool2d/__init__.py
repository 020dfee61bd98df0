"""Max pooling of images."""
