"""The data side: data sets by name, batches for training, augmentation, and reading single images."""

from tinyvit.data.augment import Augment
from tinyvit.data.datasets import (
    CHANNEL_STATISTICS,
    Batch,
    Dataset,
    dataset_names,
    image_folder,
    load_dataset,
    normalize,
)
from tinyvit.data.download import fetch
from tinyvit.data.images import read_image
from tinyvit.data.loader import Loader
from tinyvit.data.texts import TextDataset, load_texts
from tinyvit.data.tokenizer import Tokenizer

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
