"""Data: data sets by name, batches for training, augmentation, and reading single images.

Order: augment, digits, moving, scenes, tokenizer, image_files, images, formats, archives, sources, download, datasets,
texts, loader.
"""

from .augment import Augment
from .datasets import CHANNEL_STATISTICS, Batch, Dataset, dataset_names, image_folder, load_dataset, normalize
from .download import fetch
from .images import read_image
from .loader import Loader
from .texts import TextDataset, load_texts
from .tokenizer import Tokenizer

__all__ = [
    "CHANNEL_STATISTICS",
    "Augment",
    "Batch",
    "Dataset",
    "Loader",
    "TextDataset",
    "Tokenizer",
    "dataset_names",
    "fetch",
    "image_folder",
    "load_dataset",
    "load_texts",
    "normalize",
    "read_image",
]
