"""Runs of every kind of task that take a second."""

from tinyvit.recipe import About, Data, Model, Recipe, Task, Train

KINDS = {
    "vqa-cnn": ("scenes-questions", {"kind": "vqa", "fusion": "cnn"}),
    "vqa-cross": ("scenes-questions", {"kind": "vqa", "fusion": "cross"}),
    "vqa-joint": ("scenes-questions", {"kind": "vqa", "fusion": "joint"}),
    "caption": ("scenes-captions", {"kind": "caption", "word_prior": 0.7}),
    "retrieve": ("scenes-captions", {"kind": "retrieve"}),
    "masked-patches": ("digits", {"kind": "masked", "hide": "patches"}),
    "masked-words": ("scenes-captions", {"kind": "masked", "hide": "words"}),
    "masked-both": ("scenes-captions", {"kind": "masked", "hide": "both"}),
    "translate": ("reverse", {"kind": "translate"}),
    "segment": ("scenes-shapes", {"kind": "segment", "dice": 0.5}),
    "segment-queries": ("scenes-pairs", {"kind": "segment", "mask_head": "queries"}),
    "detect": ("scenes-shapes", {"kind": "detect", "queries": 5}),
}


def tiny(name: str, *assignments: str) -> Recipe:
    """Return a recipe of two epochs with three steps each for the kind `name`, changed by `assignments`."""
    data, task = KINDS[name]
    size = 2 if data == "digits" else 8
    pool = "cls" if data == "reverse" else "first"  # keys that a task does not use stand at their defaults
    depth = 2 if name in ("masked-patches", "translate", "segment") else 1
    return Recipe(
        about=About(),
        data=Data(name=data, batch_size=20, limit=60, validation=0),
        model=Model(patch_size=size, dim=8, depth=1, heads=2, mlp_dim=8, pool=pool, dropout=0.1),
        train=Train(epochs=2, lr=1e-2, ema=0.9, clip_norm=1.0),
        task=Task(text_depth=depth, **task),
    ).override(assignments)
