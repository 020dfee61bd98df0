"""The sum of two arrays of one shape."""
