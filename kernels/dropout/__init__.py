"""Dropout from counter-based random bits."""
