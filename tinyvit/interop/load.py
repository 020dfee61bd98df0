"""Load a ViT from the weights of others: timm, Hugging Face (ViT, DeiT, DINOv2), Google's npz."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..context import no_draws
from ..errors import CheckpointError, log
from ..models import ViT
from ..nn.resample import resample_patches, resample_positions
from .configs import MODEL_TYPES, Description, read_hf, read_timm
from .files import Load, Weights, as_float32, open_weights, read_json
from .hub import PREFIX, downloaded
from .names import FAMILIES, HF_PREFIXES, translate, without_prefix

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_NAMED = 8  # names that a message lists


def from_pretrained(
    folder_or_file: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> ViT:
    """Load a Vision Transformer from the weights of timm, Hugging Face or Google.

    Parameters
    ----------
    folder_or_file : str or path
        A folder of timm or of Hugging Face (ViT, DeiT, DINOv2, with registers too), with weights in one safetensors
        file or in several; one safetensors file, whose config.json is used if it lies beside it and whose form is
        inferred from the shapes otherwise; Google's npz; or "hf-hub:NAME" or "hf-hub:NAME@REVISION", which needs
        `pip install "tinyvit[hub]"` and is downloaded once.
    image_size : int or (height, width), optional
        Another size of images: the position embeddings are resampled (bicubic with antialias, as in timm; those of npz
        files bilinear, also as in timm).
    num_classes : int, optional
        With another number than the weights have, the model gets a new head; 0 removes the head.

    Returns
    -------
    ViT
        In eval mode, float32, with the attributes `preprocessing` and `labels` (empty if the names are unknown).

    Raises
    ------
    CheckpointError
        If the files are missing, damaged or pickles, if arrays do not fit (they are listed by name), or if the model
        has parts that `ViT` has no option for (they are named).
    ValueError
        If the patches do not tile images of `image_size`.
    """
    path = downloaded(str(folder_or_file)) if str(folder_or_file).startswith(PREFIX) else Path(folder_or_file)
    weights, description, interpolation = open_model(path)
    model = _built(description, image_size)
    if num_classes is not None and num_classes != model.num_classes:
        weights = weights.without(("head.", "head_dist."))
        model.reset_classifier(num_classes)
        description = _relabelled(description)
    _fill(model, weights, description, interpolation)
    model.preprocessing, model.labels = description.preprocessing, description.labels
    return model.eval()


def open_model(path: Path) -> tuple["Named", Description, str]:
    """Open the weights at `path` and read what is said about them; return how positions are resampled, too."""
    weights = open_weights(path)
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if weights.source.suffix == ".npz":
        named = Named.of_google(weights)
        return named, read_timm({}, named.shapes), "bilinear"
    kind = config.get("model_type")
    if kind is None and (folder / "recipe.toml").is_file():
        raise CheckpointError(f"{folder} is the folder of a run: use tinyvit.run.folder.load_run, or `tinyvit export`")
    if kind is None and any(without_prefix(name, HF_PREFIXES).startswith("embeddings.") for name in weights):
        raise CheckpointError(f"{weights.source} has Hugging Face's names, but no {CONFIG} beside it; copy that too")
    try:
        if kind is None:
            named = Named.of_family(weights, "timm")
            description = read_timm(config, named.shapes)
        elif kind in MODEL_TYPES:
            named = Named.of_family(weights, MODEL_TYPES[kind]).unfolded(config)
            processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
            description = read_hf(config, processor, named.shapes)
        else:
            raise CheckpointError(f"model_type is {kind!r}; there is support for {', '.join(MODEL_TYPES)}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be understood ({type(error).__name__}: {error})") from error
    if description.inferred:
        form = {key: description.options[key] for key in ("image_size", "patch_size", "dim", "depth", "heads", "pool")}
        log.warning(
            "%s has no %s: its form is inferred from its shapes (%s); %s are taken to be the usual ones",
            *(path, CONFIG, ", ".join(f"{key} {value}" for key, value in form.items()), description.inferred),
        )
    return named, description, "bicubic"


def _built(description: Description, image_size: int | tuple[int, int] | None) -> ViT:
    """Make the model, whose parameters are zero until they are filled."""
    options = description.options | description.target
    if image_size is not None:
        options["image_size"] = image_size
    elif description.target and any(n % p for n, p in zip(options["image_size"], options["patch_size"], strict=True)):
        options["image_size"] = description.options["image_size"]
    try:
        with no_draws():
            return ViT(**options)
    except ValueError as error:
        if image_size is not None:
            raise
        raise CheckpointError(f"the configuration describes a model that cannot be: {error}") from error


def _relabelled(description: Description) -> Description:
    return Description(description.options, description.target, description.preprocessing)


def _fill(model: ViT, weights: "Named", description: Description, interpolation: str) -> None:
    """Copy the weights into the model, one by one, resampled where its sizes are others."""
    options, patch_embed = description.options, model.patch_embed
    own = dict(model.named_parameters())
    expected = {name: p.shape for name, p in own.items() if weights.fresh_head is False or not _of_head(name)}
    grid = tuple(n // p for n, p in zip(options["image_size"], options["patch_size"], strict=True))
    prefix = 0 if model.no_embed_class else model.prefix
    resampled = {}
    if patch_embed.grid != grid and "pos_embed" in own:
        resampled["pos_embed"] = lambda x: resample_positions(x, grid, patch_embed.grid, prefix, interpolation)
        expected["pos_embed"] = (1, prefix + grid[0] * grid[1], expected["pos_embed"][2])
    if patch_embed.patch_size != options["patch_size"]:
        name = "patch_embed.proj.weight"
        resampled[name] = lambda x: resample_patches(x, patch_embed.patch_size, interpolation)
        expected[name] = (*expected[name][:2], *options["patch_size"])
    weights.require(expected)
    for name in expected:
        array = as_float32(name, weights.load(name))
        own[name].assign(resampled[name](array) if name in resampled else array)


def _of_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))


class Named:
    """Weights in our names.

    Attributes
    ----------
    shapes : of each parameter.
    fresh_head : whether the head was left out, because the model has a new one.
    """

    def __init__(
        self, source: Path, loads: Mapping[str, Load], shapes: Mapping[str, tuple[int, ...]], unknown: list[str]
    ) -> None:
        self.source, self._loads, self.shapes, self._unknown = source, dict(loads), dict(shapes), unknown
        self.fresh_head = False

    @classmethod
    def of_family(cls, weights: Weights, family: str) -> "Named":
        """Translate names by the table of a family, and stack q, k and v."""
        found = translate(weights, FAMILIES[family])
        loads: dict[str, Load] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, parts in found.parts.items():
            sizes = [weights.shapes[part] for part in parts]
            if len(parts) > 1 and len({size[1:] for size in sizes}) > 1:
                raise CheckpointError(f"{', '.join(parts)} have the shapes {sizes}, which cannot be stacked")
            shapes[name] = (sum(size[0] for size in sizes), *sizes[0][1:]) if len(parts) > 1 else sizes[0]
            loads[name] = partial(_stacked_of, weights, parts)
        if found.left_out:
            log.info("%s: left out %s", weights.source, ", ".join(found.left_out))
        return cls(weights.source, loads, shapes, found.unknown)

    @classmethod
    def of_google(cls, weights: Weights) -> "Named":
        """Translate Google's names, and turn their layouts (in, out) and (height, width, in, out) into ours."""
        found = translate(_unstacked(weights), FAMILIES["google"])
        if any("MAPHead" in name for name in found.unknown):
            raise CheckpointError(f"{weights.source} has a head with attention pooling (MAPHead), which this ViT lacks")
        arrays = {
            name: _stacked([_from_google(part, _array_of(weights, part)) for part in parts])
            for name, parts in found.parts.items()
        }
        loads = {name: partial(arrays.__getitem__, name) for name in arrays}
        return cls(weights.source, loads, {name: array.shape for name, array in arrays.items()}, found.unknown)

    def unfolded(self, config: Mapping[str, Any]) -> "Named":
        """Express the tokens of Hugging Face's models by those of ours.

        Their registers have no positions, so the class token takes its own; a distillation token that no class is read
        from is a register.
        """
        if "reg_token" in self.shapes and "pos_embed" in self.shapes and "cls_token" in self.shapes:
            token, positions = self._loads["cls_token"], self._loads["pos_embed"]
            self._loads["cls_token"] = lambda: as_float32("cls_token", token()) + positions()[:, :1].astype(np.float32)
            self._loads["pos_embed"] = lambda: positions()[:, 1:]
            count = self.shapes["pos_embed"][1]
            self.shapes["pos_embed"] = (1, count - 1, *self.shapes["pos_embed"][2:])
        if self.shapes.get("head.weight", (0,))[1:] == (2 * self.shapes.get("norm.weight", (0,))[0],):
            head, half = self._loads["head.weight"], self.shapes["norm.weight"][0]
            if not head()[:, half:].any():  # it reads the class token only
                self._loads["head.weight"] = lambda: head()[:, :half]
                self.shapes["head.weight"] = (self.shapes["head.weight"][0], half)
        if "dist_token" in self.shapes and "head_dist.weight" not in self.shapes:
            self._loads["reg_token"] = self._loads.pop("dist_token")
            self.shapes["reg_token"] = self.shapes.pop("dist_token")
        return self

    def without(self, beginnings: tuple[str, ...]) -> "Named":
        """Leave out the parameters of a head that the model replaces."""
        kept = {name: load for name, load in self._loads.items() if not name.startswith(beginnings)}
        result = Named(self.source, kept, {name: self.shapes[name] for name in kept}, self._unknown)
        result.fresh_head = True
        return result

    def load(self, name: str) -> NDArray[Any]:
        return self._loads[name]()

    def require(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError, with the names, unless these are exactly the parameters `expected`."""
        missing, extra = expected.keys() - self.shapes.keys(), [*(self.shapes.keys() - expected.keys()), *self._unknown]
        if missing or extra:
            told = [f"{len(n)} {what}: {_listed(n)}" for n, what in ((missing, "missing"), (extra, "unexpected")) if n]
            raise CheckpointError(f"{self.source} does not fit a ViT of its form; names {'; '.join(told)}")
        wrong = [name for name in expected if self.shapes[name] != expected[name]]
        if wrong:
            told = [f"{name} has the shape {self.shapes[name]} instead of {expected[name]}" for name in wrong[:_NAMED]]
            raise CheckpointError(f"{self.source} does not fit a ViT of its form: {'; '.join(told)}")


def _listed(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _stacked_of(weights: Weights, parts: tuple[str, ...]) -> NDArray[Any]:
    return _stacked([weights[part]() for part in parts])


def _stacked(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


_STACK = "Transformer/encoderblock/"  # the blocks of newer files of big_vision are stacked


def _unstacked(weights: Weights) -> list[str]:
    """Return the names of an npz file, with a name for each block where the blocks are stacked."""
    names = []
    for name in weights:
        blocks = range(weights.shapes[name][0]) if _STACK in name else ()
        names += [name.replace(_STACK, f"{_STACK[:-1]}_{i}/") for i in blocks] or [name]
    return names


def _array_of(weights: Weights, name: str) -> NDArray[Any]:
    if name in weights:
        return weights[name]()
    before, _, after = name.partition(_STACK[:-1] + "_")
    number, _, rest = after.partition("/")
    return weights[f"{before}{_STACK}{rest}"]()[int(number)]


def _from_google(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Turn an array of Google's npz into our layout."""
    if name.endswith("embedding/kernel"):
        return array.transpose(3, 2, 0, 1)  # (height, width, in, out)
    if name.endswith("out/kernel"):
        return array.reshape(-1, array.shape[-1]).T  # (heads, head size, out)
    if "DotProductAttention" in name and name.endswith("kernel"):
        return array.reshape(len(array), -1).T  # (in, heads, head size)
    if "DotProductAttention" in name and "/out/" not in name:
        return array.reshape(-1)  # (heads, head size)
    return array.T if name.endswith("kernel") else array
