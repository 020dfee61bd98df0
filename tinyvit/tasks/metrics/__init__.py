"""Figures by which masks and boxes are compared with the truth.

Order: pixels, matching, precision.
"""

from .matching import match_pairs
from .pixels import PixelCounts, count_each, count_pixels
from .precision import THRESHOLDS, Boxes, average_precisions, iou_of_all

__all__ = [
    "THRESHOLDS",
    "Boxes",
    "PixelCounts",
    "average_precisions",
    "count_each",
    "count_pixels",
    "iou_of_all",
    "match_pairs",
]
