"""A training run: its folder, its state, its steps, the loop, and what is shown of it.

Order: signals, curves, captured, folder, transfer, steps, state, display, loop.
"""
