"""How code for a GPU is made: hardware primitives, the compiler, launching, and what the launchers share.

Order: compiler, device, rows, dropout, simt.
"""
