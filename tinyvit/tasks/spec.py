"""The facts about a data set that decide the form of a model."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..backend.words import counted
from ..data import BoxDataset, Dataset, MaskDataset, Preprocessing, Resize, TextDataset, Tokenizer
from ..data.image_files import kind_of, listed, same_form
from ..data.images import pixels_of
from ..data.looks import NAMES, unlike
from ..data.waves import LONGEST, RATES, WaveReader
from ..errors import DataError

AnyDataset = Dataset | TextDataset | MaskDataset | BoxDataset
_LARGEST = 2**20  # side of an image, or length of a text, that a checkpoint may state


@dataclass(frozen=True)
class DataSpec:
    """The facts about a data set that decide the form of a model. A run keeps them, so predicting needs no data set.

    Attributes
    ----------
    classes : names of the classes, in the order of the logits.
    shape : of an image, (C, H, W); (T, C, H, W) of a video; () without images.
    mean, std : of each channel, see `tinyvit.data.normalize`.
    words : the vocabulary, in the order of the token ids; empty without texts.
    lengths : the largest number of tokens of a text that is read, and of one that is written.
    resize : interpolation, crop_pct and crop_mode of `tinyvit.data.Resize`; empty for the rule of `data.images`.
    sound : rate, seconds and converts of `tinyvit.data.waves.WaveReader`; empty without sounds.
    looks : the range of the training images, see `tinyvit.data.looks`; empty where it is not known. It decides nothing
        about the form of a model, so it is not compared.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    resize: tuple[Any, ...] = ()
    sound: tuple[Any, ...] = ()
    looks: tuple[float, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, dataset: AnyDataset) -> Self:
        """Collect the facts from a data set."""
        spec = cls(dataset.classes, dataset.images.shape[1:], dataset.mean, dataset.std)
        if isinstance(dataset, Dataset):
            resize = () if dataset.resize is None else dataset.resize.state()
            return dataclasses.replace(spec, resize=resize, sound=dataset.sound)
        if not isinstance(dataset, TextDataset):
            return spec
        lengths = tuple(table.shape[1] for table in (dataset.texts, dataset.labels) if table.ndim == 2)
        return dataclasses.replace(spec, words=dataset.tokenizer.words, lengths=lengths)

    @classmethod
    def from_state(cls, state: dict[str, list[Any]]) -> Self:
        """Restore what `state_dict` returned. Raises TypeError or ValueError if it is not the state of such facts."""
        spec = cls(**{name: tuple(values) for name, values in state.items()})
        for names in (spec.classes, spec.words):
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise ValueError(f"classes and words must be different texts, not {names!r:.100}")
        for counts in (spec.shape, spec.lengths):
            if not all(type(count) is int and 0 < count <= _LARGEST for count in counts):
                raise ValueError(f"shape and lengths must be integers from 1 to {_LARGEST}, not {counts!r:.100}")
        if len(spec.looks) not in (0, 2 * len(NAMES)):
            raise ValueError(f"looks has {len(spec.looks)} numbers")
        numbers = [float(number) for number in (*spec.mean, *spec.std, *spec.looks)]
        if not all(map(math.isfinite, numbers)) or min(spec.std, default=1) <= 0:
            raise ValueError(f"mean and std are {spec.mean!r:.100} and {spec.std!r:.100}")
        channels = spec.shape[-3:-2]
        if len(spec.shape) not in (0, 3, 4) or {len(spec.mean), len(spec.std)} != {sum(channels)}:
            raise ValueError(f"shape is {spec.shape}, with {len(spec.mean)} means and {len(spec.std)} deviations")
        if spec.words:
            Tokenizer(spec.words)
        if spec.resize:
            Resize.of_state(spec.resize, spec.mean)
        if spec.sound:
            rate, seconds, converts = spec.sound
            if type(rate) is not int or not RATES[0] <= rate <= RATES[1] or type(converts) is not bool:
                raise ValueError(f"sound is {spec.sound!r:.100}")
            if not 0 < float(seconds) <= LONGEST or len(spec.shape) != 3 or len(set(spec.shape[1:])) > 1:
                raise ValueError(f"sound is {spec.sound!r:.100}, of images {spec.shape}")
        return spec

    def state_dict(self) -> dict[str, list[Any]]:
        """Return the facts in the form that a checkpoint stores."""
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    def differences(self, found: Self) -> list[str]:
        """Return in words how the facts in `found` about other data differ from these; an empty list if they agree.

        Longer texts differ; shorter ones do not. The normalization is not compared.
        """
        told = [
            _names_that_differ("classes", tuple(map(same_form, self.classes)), tuple(map(same_form, found.classes))),
            _names_that_differ("words", self.words, found.words),
        ]
        if self.shape != found.shape:
            told.append(f"the images were {_size_of(self.shape)} and are now {_size_of(found.shape)}")
        for kind, length, now in zip(("read", "written"), self.lengths, found.lengths, strict=False):
            if now > length:
                told.append(f"the longest text that is {kind} had {length} tokens and has now {now}")
        return [line for line in told if line]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared, if it is not by the rule of `tinyvit.data.images`."""
        return Preprocessing(self.mean, self.std, Resize.of_state(self.resize, self.mean)) if self.resize else None

    def read_image(self, image: Any) -> np.ndarray:
        """Return an image as the pixels that a model of such data takes, uint8 (C, H, W).

        `image` is the path of a file, an array or a Pillow image, see `tinyvit.data.images.pixels_of`. A model of
        sounds takes the paths of .wav files only; spectrograms are arrays or Pillow images. Raises DataError.
        """
        name = image if isinstance(image, str | Path) else "the image"
        if not self.shape:
            raise DataError(f"{name} is an image; this model takes texts only")
        if len(self.shape) != 3:
            raise DataError(f"{name} is one image; this model takes videos of {self.shape[0]} frames, from Python only")
        channels, height, width = self.shape
        if self.sound and isinstance(image, str | Path):
            if kind := kind_of(Path(image)):
                raise DataError(f"{name} is a picture ({kind}), but this model takes sounds: give it a .wav file")
            return WaveReader(width, *self.sound)(image)
        if self.preprocessing is not None:
            return pixels_of(image, channels, (height, width), self.preprocessing.resize)
        pixels = pixels_of(image, channels, height if height == width else None)
        if pixels.shape != self.shape:
            found = f"{pixels.shape[2]} x {pixels.shape[1]}"
            raise DataError(f"{name} has {found} pixels; this model takes {width} x {height}")
        return pixels

    def unlike(self, pixels: np.ndarray) -> str:
        """Return how an image that `read_image` has read is unlike those of the training, or an empty text."""
        return unlike(pixels, self.looks) if pixels.ndim == 3 and not self.sound else ""

    @property
    def tokenizer(self) -> Tokenizer:
        """A tokenizer of the vocabulary."""
        return Tokenizer(self.words)


def _names_that_differ(what: str, before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Return in words how the names in `now` differ from those in `before`; empty if they do not."""
    missing, new = [n for n in before if n not in now], [n for n in now if n not in before]
    if before == now:
        return ""
    changes = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {how}"
        for names, how in ((missing, "gone"), (new, "new"))
        if names
    ]
    how = ", ".join(changes) or "in another order"
    return f"the {what} were {listed(before, 10)} and are now {listed(now, 10)} ({how})"


def _size_of(shape: tuple[int, ...]) -> str:
    """Return the shape of an image in words."""
    if not shape:
        return "absent"
    *frames, channels, height, width = shape
    size = f"{width} x {height} pixels with {counted(channels, 'channels')}"
    return f"{counted(frames[0], 'frames')} of {size}" if frames else size
