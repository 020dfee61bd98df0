"""Watch: monitoring a training run from the inside, layer by layer.

Order: measures, report, monitor.
"""
