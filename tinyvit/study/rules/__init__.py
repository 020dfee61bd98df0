"""Rules: what a forward or gradient rule computes, step by step, found by running the rule itself.

A rule runs on arrays that record each step; the steps are then given letters for their axes, links from each element
to the elements it was computed from, and formulas. This room knows operations and arrays, but nothing about traces.

Order: steps, axes, links, functions, written, narrate, mathml, docstrings,
statements.
"""
