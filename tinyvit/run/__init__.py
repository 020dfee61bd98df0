"""A training run: what decides it, its state, its steps, the loop, and what it leaves in its folder.

The recipes lie below the tasks, which read them; all other files use the tasks.

Order: signals, curves, captured, recipe, folder, transfer, steps, state, display, loop.
"""
