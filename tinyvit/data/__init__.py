"""Data: data sets by name, batches for training, augmentation, and reading single images.

Order: colour, geometry, policy, augment, digits, moving, scenes, tokenizer, image_files, preprocessing, images,
looks, tables, waves, formats, archives, sources, download, disk, datasets, folders, sounds, check,
check_sounds, by_name, texts, own_texts, check_texts, dense, canvas, masks, coco, things, loader, mix, splits.
"""

from .augment import Augment
from .by_name import dataset_names, described_datasets, load_dataset
from .check import check_folder
from .datasets import CHANNEL_STATISTICS, Batch, Dataset, ShardedBatch, normalize
from .dense import BoxDataset, MaskDataset
from .download import fetch
from .folders import FolderOptions, ImageFolder, image_folder
from .images import read_image
from .loader import Loader
from .mix import Mix
from .own_texts import TextTable
from .preprocessing import Preprocessing, Resize
from .sounds import SoundFolder, SoundOptions
from .splits import hold_out
from .texts import TextDataset, load_texts
from .things import load_boxes, load_masks
from .tokenizer import Tokenizer

__all__ = [
    "CHANNEL_STATISTICS",
    "Augment",
    "Batch",
    "BoxDataset",
    "Dataset",
    "FolderOptions",
    "ImageFolder",
    "Loader",
    "MaskDataset",
    "Mix",
    "Preprocessing",
    "Resize",
    "ShardedBatch",
    "SoundFolder",
    "SoundOptions",
    "TextDataset",
    "TextTable",
    "Tokenizer",
    "check_folder",
    "dataset_names",
    "described_datasets",
    "fetch",
    "hold_out",
    "image_folder",
    "load_boxes",
    "load_dataset",
    "load_masks",
    "load_texts",
    "normalize",
    "read_image",
]
