"""One step of Adam or AdamW for all parameters."""
