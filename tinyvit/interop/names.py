"""The names that others give to the parameters of a ViT: one table for each family, read in both directions.

A row is (their name, our name); our names are timm's. `#` stands for the number of a block. A name may be that of a
module: then its `weight` and `bias` are meant. `qkv:0` is the first third of the rows of `qkv`, the queries. Where two
rows have the same name of ours, files may have either, and the first is written.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Hugging Face's ViT and DeiT. Newer versions of transformers have other names in memory, and files may have them too.
_EMBEDDINGS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
)
_ATTENTION = tuple(
    (f"{block}.attention.{theirs}", f"blocks.#.attn.{ours}")
    for block, names in (
        ("encoder.layer.#", ("attention.query", "attention.key", "attention.value", "output.dense")),
        ("encoder.layer.#", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("layers.#", ("q_proj", "k_proj", "v_proj", "o_proj")),
    )
    for theirs, ours in zip(names, ("qkv:0", "qkv:1", "qkv:2", "proj"), strict=True)
)
_HEADS = (
    ("layernorm", "norm"),
    ("classifier", "head"),
    ("cls_classifier", "head"),
    ("distillation_classifier", "head_dist"),
)
HF_VIT = (
    *_EMBEDDINGS,
    *_ATTENTION,
    *_HEADS,
    ("encoder.layer.#.layernorm_before", "blocks.#.norm1"),
    ("encoder.layer.#.layernorm_after", "blocks.#.norm2"),
    ("encoder.layer.#.intermediate.dense", "blocks.#.mlp.fc1"),
    ("encoder.layer.#.output.dense", "blocks.#.mlp.fc2"),
    ("layers.#.layernorm_before", "blocks.#.norm1"),
    ("layers.#.layernorm_after", "blocks.#.norm2"),
    ("layers.#.mlp.fc1", "blocks.#.mlp.fc1"),
    ("layers.#.mlp.fc2", "blocks.#.mlp.fc2"),
)
HF_DINOV2 = (
    *_EMBEDDINGS,
    *_ATTENTION,
    *_HEADS,
    *(
        (f"{block}.{theirs}", f"blocks.#.{ours}")
        for block in ("encoder.layer.#", "layers.#")
        for theirs, ours in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
    ),
)
# Parameters that other parts of those models have: a mask token for pre-training, a pooler that no class is read from.
HF_LEFT_OUT = ("embeddings.mask_token", "pooler.", "decoder.")
HF_PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")

TIMM = (
    *((name, name) for name in ("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj")),
    *((name, name) for name in ("norm_pre", "norm", "fc_norm", "head", "head_dist")),
    *(
        (f"blocks.#.{name}", f"blocks.#.{name}")
        for name in (
            *("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "ls1.gamma"),
            *("norm2", "mlp.fc1", "mlp.fc2", "ls2.gamma"),
        )
    ),
    ("blocks.#.gamma_1", "blocks.#.ls1.gamma"),  # of the original DeiT III and BEiT
    ("blocks.#.gamma_2", "blocks.#.ls2.gamma"),
    ("register_tokens", "reg_token"),  # of the original DINOv2
)
TIMM_LEFT_OUT = ("pre_logits.", "mask_token")
TIMM_PREFIXES = ("module.", "model.", "state_dict.", "_orig_mod.")

# Google's npz (augreg), of the original code and of big_vision. Here a row names an array, not a module.
_IN_BLOCK = (
    ("LayerNorm_0/scale", "norm1.weight"),
    ("LayerNorm_0/bias", "norm1.bias"),
    *(
        (theirs, ours)
        for attention, mlp, norm in ((1, 3, 2), (0, 0, 1))
        for theirs, ours in (
            *(
                (f"MultiHeadDotProductAttention_{attention}/{part}/{kind}", f"attn.qkv.{own}:{i}")
                for i, part in enumerate(("query", "key", "value"))
                for kind, own in (("kernel", "weight"), ("bias", "bias"))
            ),
            (f"MultiHeadDotProductAttention_{attention}/out/kernel", "attn.proj.weight"),
            (f"MultiHeadDotProductAttention_{attention}/out/bias", "attn.proj.bias"),
            (f"LayerNorm_{norm}/scale", "norm2.weight"),
            (f"LayerNorm_{norm}/bias", "norm2.bias"),
            *(
                (f"MlpBlock_{mlp}/Dense_{i}/{kind}", f"mlp.fc{i + 1}.{own}")
                for i in (0, 1)
                for kind, own in (("kernel", "weight"), ("bias", "bias"))
            ),
        )
    ),
)
GOOGLE = (
    ("cls", "cls_token"),
    ("Transformer/posembed_input/pos_embedding", "pos_embed"),
    ("pos_embedding", "pos_embed"),
    ("embedding/kernel", "patch_embed.proj.weight"),
    ("embedding/bias", "patch_embed.proj.bias"),
    ("Transformer/encoder_norm/scale", "norm.weight"),
    ("Transformer/encoder_norm/bias", "norm.bias"),
    ("head/kernel", "head.weight"),
    ("head/bias", "head.bias"),
    *((f"Transformer/encoderblock_#/{theirs}", f"blocks.#.{ours}") for theirs, ours in _IN_BLOCK),
)
GOOGLE_LEFT_OUT = ("pre_logits/",)
GOOGLE_PREFIXES = ("opt/target/", "params/img/", "params/")


@dataclass(frozen=True)
class Family:
    """The names of one family.

    Attributes
    ----------
    rows : pairs of names, see this module.
    prefixes : what may stand before every name of a file.
    left_out : beginnings of the names of parameters that a ViT here does not have.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    prefixes: tuple[str, ...]
    left_out: tuple[str, ...]


FAMILIES = {
    family.name: family
    for family in (
        Family("timm", TIMM, TIMM_PREFIXES, TIMM_LEFT_OUT),
        Family("vit", HF_VIT, HF_PREFIXES, HF_LEFT_OUT),
        Family("dinov2", HF_DINOV2, HF_PREFIXES, HF_LEFT_OUT),
        Family("google", GOOGLE, GOOGLE_PREFIXES, GOOGLE_LEFT_OUT),
    )
}


@dataclass(frozen=True)
class Translation:
    """Their names of the parts of each of our parameters, in order; names that are left out; and unknown names."""

    parts: dict[str, tuple[str, ...]]
    left_out: list[str]
    unknown: list[str]


def translate(names: Iterable[str], family: Family) -> Translation:
    """Translate the names of a file to ours."""
    patterns = [(_pattern(theirs), ours) for theirs, ours in family.rows]
    found: dict[str, dict[int, str]] = {}
    left_out, unknown = [], []
    for name in names:
        bare = without_prefix(name, family.prefixes)
        if bare.startswith(family.left_out):
            left_out.append(name)
            continue
        for pattern, ours in patterns:
            if match := pattern.fullmatch(bare):
                target, slot = _target(ours, match)
                found.setdefault(target, {})[slot] = name
                break
        else:
            unknown.append(name)
    parts = {target: tuple(slots[i] for i in sorted(slots)) for target, slots in found.items()}
    return Translation(parts, left_out, unknown)


def theirs_of(ours: str, family: Family) -> tuple[str, ...]:
    """Return the names under which a family stores our parameter: three for `qkv`. Raises KeyError if it has none."""
    module, _, kind = ours.rpartition(".")
    number = re.search(r"\bblocks\.(\d+)\.", ours)
    block = number[1] if number else ""
    for end, candidates in (("", _rows_of(ours, block, family)), (f".{kind}", _rows_of(module, block, family))):
        if candidates:
            return tuple(f"{theirs}{end}" for theirs in candidates)
    raise KeyError(ours)


def _rows_of(ours: str, block: str, family: Family) -> list[str]:
    """Return the first of their names for our module or parameter, or for each of its parts."""
    found: dict[str, str] = {}
    for theirs, own in family.rows:
        name, _, slot = own.replace("#", block).partition(":")
        if name == ours:
            found.setdefault(slot, theirs.replace("#", block))
    return [found[slot] for slot in sorted(found)]


def without_prefix(name: str, prefixes: tuple[str, ...]) -> str:
    """Return a name without the prefixes that may stand before it, one after another."""
    while prefix := next((p for p in prefixes if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _pattern(theirs: str) -> re.Pattern[str]:
    """Compile a row's name to a pattern of the arrays it means: of a module, its weight and its bias."""
    return re.compile(re.escape(theirs).replace(re.escape("#"), r"(?P<block>\d+)") + r"(?P<kind>\.weight|\.bias)?")


def _target(ours: str, match: re.Match[str]) -> tuple[str, int]:
    """Return our full name of a matched array, and its place among the parts."""
    name, _, slot = ours.partition(":")
    if "block" in match.groupdict():
        name = name.replace("#", match["block"])
    return name + (match["kind"] or ""), int(slot or 0)
