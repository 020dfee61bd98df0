"""Layer normalization, alone and with the residual sum before it."""
