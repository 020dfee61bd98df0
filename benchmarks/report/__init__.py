"""What is shown and kept of a run: its records, tables for the terminal, plots, and pages.

Order: records, table, plots, page.
"""
