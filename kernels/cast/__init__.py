"""Conversion to another dtype."""
