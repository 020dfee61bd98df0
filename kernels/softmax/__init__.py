"""Softmax along one axis."""
