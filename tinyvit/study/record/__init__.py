"""Records: what a trace writes down about a computation, while it runs forward and backward.

Order: values, records, submodules, recorder.
"""
