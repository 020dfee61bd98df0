"""Softmax cross-entropy of class ids or probabilities."""
