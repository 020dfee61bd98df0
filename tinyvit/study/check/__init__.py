"""Checks: recorded gradient rules and functions compared with finite differences, and wrong rules to be found.

Order: gradcheck, differences, faults.
"""
