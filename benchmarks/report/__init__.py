"""The results of runs: records, CSV files, comparisons, tables for the terminal, plots and pages.

Order: records, csv_files, compare, table, plots, page.
"""
