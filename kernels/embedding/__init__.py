"""Rows of a table, selected by their ids."""
