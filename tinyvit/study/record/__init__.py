"""Records: what a trace writes down about a computation, while it runs forward and backward.

Order: values, names, records, submodules, recorder.
"""
