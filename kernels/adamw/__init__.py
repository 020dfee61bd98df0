"""The step of Adam and AdamW, for all parameters at once."""
