"""Weights of others: load folders and files of timm, Hugging Face and Google, and write folders that those load.

Order: files, names, shapes, configs, hub, load, describe, save, probe.
"""

from .load import from_pretrained
from .save import save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
