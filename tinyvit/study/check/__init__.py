"""Checks: recorded gradient rules compared with finite differences, and wrong rules planted for students to find.

Order: differences, faults.
"""
