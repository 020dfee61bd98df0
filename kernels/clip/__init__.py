"""The joint norm of all gradients, and their scaling to a largest norm."""
