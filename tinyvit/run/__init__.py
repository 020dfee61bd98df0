"""A training run: its folder, its state, its steps, the loop, and what is shown of it.

Order: own_images, signals, curves, captured, captured_cpu, groups, optimizer, predict, pretrained, shipped, summary,
moved, folder, export, features, webpage, continued, transfer, teacher, steps, flat, buckets, sharded, arithmetic,
position, teamwork, equal_samples, state, agreement, tune, sheets, samples, results, choices, display, loop, sweep,
explain.
"""
