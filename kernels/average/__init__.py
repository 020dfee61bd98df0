"""The moving average of parameters, updated after a step of the optimizer."""
