"""What recipes and their keys mean: `tinyvit recipe NAME`, and the list of recipes in `tinyvit train --help`."""

import dataclasses
import textwrap
from typing import Any

from ..recipe import Range, Recipe, load_recipe, recipe_names
from .shipped import shipped_names

MEANINGS = {
    "data.name": "A data set (`tinyvit data list`), or your own: folder:, sounds:, csv: or coco:PATH.",
    "data.batch_size": "Samples in a batch.",
    "data.image_size": "Side of the images in pixels, to which files are resized; 0 keeps their size.",
    "data.shift": "Augmentation: the largest shift in pixels, in both directions.",
    "data.flip": "Augmentation: mirror half of the images, left and right.",
    "data.rotate": "Augmentation: the largest angle in degrees, in both directions.",
    "data.scale": "Augmentation: enlarge or reduce by a factor between 1 - scale and 1 + scale.",
    "data.cutout": "Augmentation: the side in pixels of a square that is blanked out.",
    "data.crop": "Augmentation: the smallest share of the area of a random resized crop; 0 crops nothing.",
    "data.flip_alternating": "Augmentation: mirror half of the images in one epoch, and the others in the next.",
    "data.policy": "Augmentation: RandAugment or TrivialAugment.",
    "data.policy_layers": "Operations of RandAugment for each image.",
    "data.policy_strength": "Strength of the operations of RandAugment.",
    "data.colour": "Augmentation: the largest change of brightness, contrast and saturation.",
    "data.erasing": "Augmentation: the share of images in which a rectangle is filled with noise.",
    "data.repeats": "Augmentation: how often a batch holds each image, changed differently each time.",
    "data.mixup": "Augmentation: mix pairs of images and their labels, by a share drawn from Beta(mixup, mixup).",
    "data.cutmix": "Augmentation: paste a rectangle of another image, its share from Beta(cutmix, cutmix).",
    "data.limit": "Train on this many samples only; 0 is all.",
    "data.normalize": "Mean and std of the channels, `0.5 0.5 0.5 / 0.5 0.5 0.5`; empty for those of the data.",
    "data.resize": "How files are resized, such as `bicubic 0.9 center`; empty for what weights or data ask for.",
    "data.validation": "Held out for validation, a fraction or a number; with 0, test images measure each epoch.",
    "data.split_seed": "Decides which images are held out.",
    "data.test": "Of own data without a test split: what is held out for it, a fraction or a number.",
    "data.channels": "Of own images: 1 (grey) or 3 (colour); 0 takes what they have.",
    "data.statistics": "Of own images: normalize by the statistics found in them, or by one half.",
    "data.broken": "Of own images: skip files that cannot be read, or refuse to train.",
    "data.cache_mb": "Memory for images in MiB; images beyond it are read from disk when they are needed.",
    "data.sample_rate": "Of own sounds: samples per second to which files are converted; 0 if all have the same.",
    "data.seconds": "Of own sounds: the length to which they are cut or filled up; 0 chooses it by the files.",
    "model.patch_size": "Side of a patch in pixels; it must divide the size of the images.",
    "model.dim": "Width: the channels of each token.",
    "model.depth": "Number of blocks.",
    "model.heads": "Attention heads of each block; dim must be a multiple of it.",
    "model.mlp_dim": "Width of the hidden layer of each MLP; 0 is 4 x dim.",
    "model.pool": "What the class is read from; seq is a mean of the patches with learned weights.",
    "model.norm": "Layer norm before each branch, or after each residual sum.",
    "model.pos_embed": "Positions: learned, fixed sines and cosines of one or two coordinates, or none.",
    "model.qkv_bias": "Whether queries, keys and values have a bias.",
    "model.dropout": "Dropout of attention probabilities, projections and MLPs.",
    "model.emb_dropout": "Dropout of the embedded tokens.",
    "model.drop_path": "Stochastic depth: the rate of the last block, growing linearly from 0 at the first.",
    "model.layer_scale": "The initial factor of each residual branch, which is learned; 0 is no such factor.",
    "model.register_tokens": "Extra tokens that no class is read from.",
    "model.stem": "Patches by one linear map, by convolutions (conv, cct), or beside shifted images (spt).",
    "model.class_token": "Add a class token also where the class is not read from it.",
    "model.distilled": "Add a distillation token with a head of its own, as in DeiT.",
    "model.no_embed_class": "Leave class and register tokens without a learned position.",
    "model.last_norm": "Where the last layer norm stands: before pooling (norm), after it (fc_norm), or nowhere.",
    "model.pre_norm": "A layer norm of the embedded tokens, as in CLIP.",
    "model.qk_norm": "A layer norm of the queries and keys of each head.",
    "model.proj_bias": "Whether the projection after attention has a bias.",
    "model.act": "The activation of the MLPs.",
    "model.eps": "The eps of every layer norm.",
    "model.norm_layer": "Layer norm, or RMS norm, which subtracts no mean.",
    "model.mlp_layer": "Two linear maps, the same with a depthwise convolution between them, or SwiGLU.",
    "model.lsa": "Attention with a learned temperature, in which no token attends to itself.",
    "model.rope": "Rotary positions: queries and keys are turned by the row and column of their patches.",
    "model.head_dropout": "Dropout of the features that the head reads.",
    "train.epochs": "How often all training samples are seen.",
    "train.lr": "Learning rate at the peak of the schedule.",
    "train.min_lr": "Learning rate at the end of the schedule.",
    "train.schedule": "How the learning rate falls after the warm-up.",
    "train.cooldown": "Of the schedule cooldown: the share of the steps in which the learning rate falls.",
    "train.warmup_epochs": "Epochs over which the learning rate rises from 0.",
    "train.optimizer": "The optimizer.",
    "train.weight_decay": "Weight decay; with adamw it is decoupled from the gradient.",
    "train.beta1": "Of adamw and adam: the decay of the average of gradients.",
    "train.beta2": "Of adamw and adam: the decay of the average of their squares.",
    "train.momentum": "Of sgd: the momentum.",
    "train.nesterov": "Of sgd: Nesterov's momentum.",
    "train.lion_beta2": "Of lion: the decay of the average of gradients.",
    "train.muon_momentum": "Of muon: the momentum of the matrices of blocks; adamw trains the rest.",
    "train.clip_norm": "The largest joint norm of all gradients; larger ones are scaled down. 0 clips nothing.",
    "train.label_smoothing": "The probability that targets share among all classes.",
    "train.layer_decay": "The factor of the learning rate from each block to the one below it.",
    "train.ema": "Decay of the average of the weights, which is measured and kept; 0 is none.",
    "train.accumulate": "Batches whose gradients are summed for one step.",
    "train.precision": "The dtype of matrix products, attention and GELU.",
    "train.keep": "Keep the last weights, or those of the best epoch on the validation images.",
    "train.patience": "Stop after this many epochs without a better one; 0 never stops early.",
    "train.continued_from": "Written by `--resume --set`: the epochs that were trained before it.",
    "train.seed": "Seed of weights, order, augmentation and dropout.",
    "train.shards": "Parts of a batch that are computed apart, by one process or several; 0 divides no batch.",
    "train.reduce": "How processes add up gradients: to the same bits with any number of them, or in any order.",
    "train.wire": "With train.reduce=fast: the dtype in which processes send gradients; bfloat16 halves the bytes.",
    "train.checkpoint_minutes": "Minutes between checkpoints, which are also written after each epoch.",
    "task.kind": "What is learned.",
    "task.fusion": "Of vqa: how image and question are combined.",
    "task.text_depth": "Blocks of the text encoder or decoder, or of the queries.",
    "task.hide": "Of masked: what is hidden.",
    "task.hide_patches": "Of masked: the share of patches that are hidden.",
    "task.hide_words": "Of masked: the share of words that are hidden.",
    "task.word_prior": "Of caption and translate: how far the word before explains the next one in training; 0 is off.",
    "task.mask_head": "Of segment: a linear head on each patch, or a query for each class.",
    "task.dice": "Of segment: the weight of the Dice loss.",
    "task.queries": "Of detect: the most things that can be found in an image.",
    "task.start_from": "A run folder or pretrained weights to start from; pretrained weights decide [model].",
    "task.freeze": "What is not trained: an encoder, both, or all but the head (backbone).",
    "task.teacher": "Of classify: a run or pretrained weights, whose predictions are learned beside the labels.",
    "task.distill": "What is learned from the teacher: its most probable class, or all its probabilities.",
    "task.distill_temperature": "Of soft distillation: logits are divided by it.",
    "task.distill_weight": "The share of the teacher in the loss; the labels have the rest.",
    "task.lora_rank": "Rank of the adapters beside frozen linear maps; 0 is none.",
    "task.lora_targets": "Patterns of the names of the linear maps that get adapters.",
}  # fmt: skip
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_WIDTH = 96  # of comments


def recipes_in_brief() -> list[tuple[str, str]]:
    """Return the name of each recipe of the package, and the minutes and the accuracy to expect with its title."""
    lines = []
    for name in recipe_names():
        recipe = load_recipe(name)
        lines.append((name, ": ".join(part for part in (_expected(recipe), recipe.about.title) if part)))
    return lines


def _expected(recipe: Recipe) -> str:
    about = recipe.about
    minutes = f"{about.minutes:g} min{' on a GPU' * about.is_aim}" if about.minutes else ""
    accuracy = f"{100 * about.accuracy:g} %" if about.accuracy else ""
    expected = ", ".join(part for part in (minutes, accuracy) if part)
    return f"aim, not measured: {expected}" if about.is_aim and expected else expected


def explained(name: str) -> str:
    """Return a recipe as TOML in which each key is explained: its range, its default, its meaning. Raises RecipeError.

    The text is a recipe itself: saved as a file, it trains the same run.
    """
    recipe = load_recipe(name)
    about, expected = recipe.about, _expected(recipe)
    lines = _comment(about.title or name)
    if expected:
        lines += _comment(f"{expected[0].upper()}{expected[1:]}" if about.is_aim else f"On 2 CPU cores: {expected}")
    lines += [  # commands stand on one line, to be copied
        f"# Train it: {about.command or f'tinyvit train {name}'}",
        "# Change a key: add --set KEY=VALUE",
        "# Or change this text, saved as mine.toml: tinyvit train mine.toml",
    ]
    if name in shipped_names():
        lines.append(f"# Trained weights come with the package: tinyvit evaluate {name}")
    for block in recipe.to_toml().split("\n\n"):
        section, *keys = block.strip().split("\n")
        lines += ["", section]
        for i, line in enumerate(keys):
            if section != "[about]":
                meaning, values = _explained_key(section.strip("[]"), line.partition(" = ")[0])
                lines += [*([""] if i else []), *_comment(meaning), *_comment(values)]
            lines.append(line)
    return "\n".join(lines)


def _explained_key(section: str, name: str) -> tuple[str, str]:
    """Return the meaning of a key; and the values that it may have, with its default."""
    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe)}
    key = next(key for key in dataclasses.fields(sections[section]) if key.name == name)
    allowed: Any = key.metadata.get("allowed")
    values = _KINDS[key.type]  # type: ignore[index]
    if isinstance(allowed, Range):
        values += f", {allowed}"
    elif allowed is not None:
        values = "one of " + ", ".join(allowed)
    default = "required" if key.default is dataclasses.MISSING else f"default {_shown(key.default)}"
    return MEANINGS.get(f"{section}.{name}", ""), f"{values}; {default}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "empty"
    return repr(value).lower()


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)]
