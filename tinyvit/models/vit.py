"""The Vision Transformer (Dosovitskiy et al., An image is worth 16x16 words, 2021)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import functional as F
from ..data.preprocessing import Preprocessing
from ..functional.tensors import Tensor, check_flags, flag
from ..nn import (
    Block,
    Dropout,
    Identity,
    Linear,
    LocalMlp,
    Module,
    ModuleList,
    Parameter,
    PatchEmbed,
    RotaryPositions,
    init,
    initialize_linear,
)
from ..nn.layers import normalization
from ..nn.mlp import ACTIVATIONS
from ..nn.patches import Sizes, as_sizes, sincos1d, sincos2d
from ..nn.resample import resample_patches, resample_positions
from ..nn.transformer import apply_blocks

EPS = 1e-6  # of every layer norm, as in timm
POOLS = ("cls", "mean", "first", "cls_mean", "seq")
POSITIONS = ("learned", "sincos1d", "sincos2d", "none")
LAST_NORMS = ("auto", "norm", "fc_norm", "none")


class ViT(Module):
    """Images to class logits: (B, in_channels, H, W) -> (B, num_classes).

    Parameter names and shapes are those of timm's `vision_transformer`, so `state_dict` exchanges with it.

    Parameters
    ----------
    image_size, patch_size : int or (height, width)
        Three numbers, (frames, height, width), for videos (B, T, in_channels, H, W).
    num_classes : 0 for no head: the model then returns the pooled features (B, dim).
    dim, depth, heads, mlp_dim : width, number of blocks, attention heads, width of the MLP (4 x dim by default).
    pool : {"cls", "mean", "first", "cls_mean", "seq"}
        Read the class from a class token, the mean of the patches (then `fc_norm`), the first patch, or the class token
        beside the mean of the patches, (B, 2 dim), as classifiers on DINOv2 do (Oquab et al., DINOv2, 2023). "seq" is
        sequence pooling: the mean of the patches weighted by the softmax of one learned linear map of them,
        `attention_pool` (Hassani et al., Escaping the big data paradigm with compact transformers, 2021, equation 6).
    norm : {"pre", "post"}
        Layer norm before each branch and once at the end, or after each residual sum.
    pos_embed : {"learned", "sincos1d", "sincos2d", "none"}
        sincos1d counts all tokens in order, the class token first; sincos2d counts rows and columns of patches, and
        leaves the other tokens without a position.
    dropout : on attention probabilities, projection and MLP.  emb_dropout : on the embedded tokens.
    drop_path : rate of the last block; it grows linearly from 0.
    layer_scale : initial factor of each residual branch, or None for none.
    register_tokens : extra tokens that no class is read from (Darcet et al., 2024).
    stem : {"linear", "conv", "cct", "spt"}, see `PatchEmbed`.
    class_token : add a class token also where `pool` does not read it.
    distilled : add a distillation token `dist_token` after the class token, and for it a second head `head_dist`; the
        logits are the mean of both (Touvron et al., DeiT, 2021). Needs pool="cls" and no register tokens.
    no_embed_class : leave class and register tokens without a learned position (Touvron et al., DeiT III, 2022).
    last_norm : {"auto", "norm", "fc_norm", "none"}
        Where the last layer norm stands: `norm` before pooling, `fc_norm` after it, or nowhere. "auto" is `fc_norm`
        with pool="mean", else `norm` if norm="pre".
    pre_norm : a layer norm `norm_pre` of the embedded tokens, whose patches then have no bias, as in CLIP.
    qk_norm, proj_bias, act, norm_layer, mlp_layer, lsa : see `Block`; `norm_layer` is that of all norms of tokens.
    rope : turn queries and keys by the places of their patches, see `RotaryPositions`, beside what `pos_embed` adds.
    eps : of every layer norm.
    head_dropout : on the pooled features.

    Attributes
    ----------
    preprocessing : how images are prepared for pretrained weights; None for a new model.
    labels : the names of the classes, if they are known.
    """

    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()

    def __init__(
        self,
        image_size: int | Sizes,
        patch_size: int | Sizes,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        in_channels: int = 3,
        pool: str = "cls",
        norm: str = "pre",
        pos_embed: str = "learned",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        register_tokens: int = 0,
        stem: str = "linear",
        *,
        class_token: bool = False,
        distilled: bool = False,
        no_embed_class: bool = False,
        last_norm: str = "auto",
        pre_norm: bool = False,
        qk_norm: bool = False,
        proj_bias: bool = True,
        act: str = "gelu",
        eps: float = EPS,
        head_dropout: float = 0.0,
        norm_layer: str = "layernorm",
        mlp_layer: str = "mlp",
        lsa: bool = False,
        rope: bool = False,
    ) -> None:
        check_flags("ViT", distilled=distilled, no_embed_class=no_embed_class, pre_norm=pre_norm, rope=rope)
        _check_choices(distilled, register_tokens, pool=pool, pos_embed=pos_embed, last_norm=last_norm, act=act)
        init.check_sizes("ViT", dim=dim, heads=heads, in_channels=in_channels)
        init.check_sizes("ViT", 0, num_classes=num_classes, depth=depth, register_tokens=register_tokens)
        self.pool, self.positions, self.no_embed_class, self.mlp_layer = pool, pos_embed, no_embed_class, mlp_layer
        self.head_dim = 2 * dim if pool == "cls_mean" else dim
        self._add_tokens(dim, class_token, distilled, register_tokens)
        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, dim, stem, bias=not pre_norm)
        self.pos_embed = self._positions(pos_embed, dim)
        self.pos_drop = Dropout(emb_dropout)
        self.norm_pre = normalization(norm_layer, dim, eps) if pre_norm else Identity()
        new_block = partial(
            Block, dim, heads, mlp_dim, norm, qkv_bias, dropout, layer_scale=layer_scale, eps=eps, qk_norm=qk_norm,
            proj_bias=proj_bias, act=act, norm_layer=norm_layer, mlp_layer=mlp_layer, lsa=lsa, prefix=self.prefix,
            grid=self.patch_embed.grid, rope=self._rotary(dim // heads) if rope else None,
        )  # fmt: skip
        self.blocks = ModuleList(new_block(drop_path=rate) for rate in np.linspace(0, drop_path, depth).tolist())
        place = _place_of_last_norm(last_norm, pool, norm)
        self.norm = normalization(norm_layer, dim, eps) if place == "norm" else Identity()
        self.attention_pool = Linear(dim, 1) if pool == "seq" else None
        self.fc_norm = normalization(norm_layer, self.head_dim, eps) if place == "fc_norm" else Identity()
        self._add_heads(num_classes, distilled, head_dropout)
        initialize_linear(self)

    def _add_tokens(self, dim: int, class_token: bool, distilled: bool, register_tokens: int) -> None:
        """Make the tokens before the patches, and count them."""
        has_class_token = flag("ViT: class_token", class_token) or self.pool in ("cls", "cls_mean")
        self.cls_token = Parameter(init.trunc_normal((1, 1, dim), 1e-6)) if has_class_token else None
        self.dist_token = Parameter(init.trunc_normal((1, 1, dim))) if distilled else None
        self.reg_token = Parameter(init.trunc_normal((1, register_tokens, dim), 1e-6)) if register_tokens else None
        self.prefix = has_class_token + int(distilled) + register_tokens

    def _add_heads(self, num_classes: int, distilled: bool, dropout: float) -> None:
        self.head_drop = Dropout(dropout)
        self.head = self._new_head(num_classes)
        self.head_dist = self._new_head(num_classes) if distilled else None

    def _rotary(self, head_dim: int) -> RotaryPositions:
        return RotaryPositions(self.patch_embed.grid, head_dim, self.prefix)

    def _new_head(self, num_classes: int) -> Module:
        return Linear(self.head_dim, num_classes) if num_classes else Identity()

    def _positions(self, kind: str, dim: int) -> Parameter | Tensor | None:
        """What is added to the tokens, (1, N, dim): a parameter, a constant, or nothing."""
        if self.no_embed_class and not self.prefix:
            raise ValueError("no_embed_class is True, but there are no class or register tokens; leave it at False")
        grid, prefix = self.patch_embed.grid, 0 if self.no_embed_class else self.prefix
        tokens = prefix + math.prod(grid)
        if kind == "none":
            return None
        if kind == "learned":
            return Parameter(init.trunc_normal((1, tokens, dim)))
        if kind == "sincos1d":
            return Tensor(sincos1d(tokens, dim)[None])
        return Tensor(np.concatenate([np.zeros((prefix, dim), np.float32), sincos2d(grid, dim)])[None])

    # Forward

    def embed(self, images: Any) -> Tensor:
        """Tokens with their positions, class token and registers first: (B, C, H, W) -> (B, N, dim)."""
        x = self.patch_embed(self.as_input(images))
        if self.no_embed_class and self.pos_embed is not None:
            x = x + self.pos_embed
        prefix = [
            t.broadcast_to(x.shape[0], t.shape[1], t.shape[2])
            for t in (self.cls_token, self.dist_token, self.reg_token)
            if t is not None
        ]
        x = F.concatenate([*prefix, x], axis=1) if prefix else x
        if self.pos_embed is not None and not self.no_embed_class:
            x = x + self.pos_embed
        return self.norm_pre(self.pos_drop(x))

    def features(self, images: Any) -> Tensor:
        """The tokens after the last block and `norm` (if the form has one): (B, N, dim)."""
        return self.encode(self.embed(images))

    forward_features = features  # the name in timm

    def encode(self, tokens: Tensor, read: int | None = None) -> Tensor:
        """Do the same for embedded tokens (B, N, dim), or some of them; with `read`, only for that token: (B, dim)."""
        return self.norm(apply_blocks(self.blocks, tokens, read=read))

    def forward(self, images: Any) -> Tensor:
        x = self.embed(images)
        if self.pool in ("cls", "first") and self.dist_token is None and self.mlp_layer != "local":
            x = self.encode(x, read=0 if self.pool == "cls" else self.prefix)
            return self.head(self.head_drop(self.fc_norm(x)))
        return self.forward_head(self.encode(x))

    def forward_both(self, images: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) of the head, and those of `head_dist`; twice the same for a model without one."""
        if self.head_dist is None:
            logits = self(images)
            return logits, logits
        x, y = self._read_by_heads(self.features(images))
        return self.head(x), self.head_dist(y)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the tokens (B, N, dim) of `forward_features`; with `pre_logits`, what heads read.

        That is the pooled features (B, dim); of a distilled model the mean of both tokens.
        """
        check_flags("forward_head", pre_logits=pre_logits)
        if self.head_dist is not None:
            x, y = self._read_by_heads(tokens)
            return (x + y) / 2 if pre_logits else (self.head(x) + self.head_dist(y)) / 2
        x = self.head_drop(self.fc_norm(self._pooled(tokens)))
        return x if pre_logits else self.head(x)

    def _read_by_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The first two tokens (B, dim) as the two heads of a distilled model read them."""
        x, y = (self.head_drop(self.fc_norm(tokens[:, i])) for i in (0, 1))
        return x, y

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.pool in ("cls", "first"):
            return tokens[:, 0 if self.pool == "cls" else self.prefix]
        patches = tokens[:, self.prefix :] if self.prefix else tokens
        if self.attention_pool is not None:
            return (F.softmax(self.attention_pool(patches), axis=1) * patches).sum(axis=1)
        mean = patches.mean(axis=1)
        return mean if self.pool == "mean" else F.concatenate([tokens[:, 0], mean], axis=1)

    def forward_intermediates(
        self, images: Any, indices: Sequence[int] | None = None, norm: bool = False
    ) -> list[Tensor]:
        """The tokens after some of the blocks, each (B, N, dim), those before the patches included.

        `indices` counts blocks from 0, or from the end if negative; None takes all. With `norm` the layer norm `norm`
        follows, as after the last block. Raises ValueError if there is no such block.
        """
        check_flags("forward_intermediates", norm=norm)
        depth = len(self.blocks)
        wanted = list(range(depth)) if indices is None else [i + depth if i < 0 else i for i in indices]
        if bad := [i for i in wanted if not 0 <= i < depth]:
            raise ValueError(f"indices names block {bad[0]}; this model has the blocks 0 to {depth - 1}")
        x, kept = self.embed(images), {}
        for i, block in enumerate(self.blocks):
            if i > max(wanted, default=-1):
                break
            x = block(x)
            kept[i] = self.norm(x) if norm else x
        return [kept[i] for i in wanted]

    # Changing a model

    @property
    def needs_all_tokens(self) -> bool:
        """Whether blocks need all tokens of an image in their order, because of mlp_layer="local" or of rope=True."""
        return any(isinstance(module, LocalMlp | RotaryPositions) for module in self.modules())

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 without a head."""
        return self.head.weight.shape[0] if isinstance(self.head, Linear) else 0

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head, or both heads, by a new one for `num_classes`; 0 removes it."""
        init.check_sizes("reset_classifier", 0, num_classes=num_classes)
        like = next(self.parameters())
        for name in ("head", "head_dist"):
            if getattr(self, name) is not None:
                head = self._new_head(num_classes)
                initialize_linear(head)
                setattr(self, name, head.to(like.dtype).to(like.device).train(self.training))

    def set_input_size(self, image_size: int | Sizes | None = None, patch_size: int | Sizes | None = None) -> None:
        """Take images, or patches, of another size: learned positions and patch weights are resampled, as in timm.

        Raises ValueError if the patches do not tile the images, or the model takes videos.
        """
        old = self.patch_embed
        if len(old.grid) != 2:
            raise ValueError("this model takes videos; only models of images take another size")
        sizes = old.image_size if image_size is None else as_sizes("image_size", image_size)
        patch = old.patch_size if patch_size is None else as_sizes("patch_size", patch_size)
        if patch != old.patch_size and old.stem is not None:
            raise ValueError(f"this model has stem={old.stem_name!r}, whose patches have a fixed size")
        if any(n % p for n, p in zip(sizes, patch, strict=True)):
            raise ValueError(f"patch_size {patch} does not divide image_size {sizes}")
        grid = tuple(n // p for n, p in zip(sizes, patch, strict=True))
        if patch != old.patch_size:
            projection: Any = old.proj
            _put(projection, "weight", resample_patches(projection.weight.numpy(), patch))
        before, old.grid, old.image_size, old.patch_size = old.grid, grid, sizes, patch
        for module in self.modules():
            if isinstance(module, LocalMlp):
                module.grid = grid[0], grid[1]
            elif isinstance(module, RotaryPositions):
                like: Tensor = module.cos
                module.set_grid(grid)
                module.to(like.dtype).to(like.device)
        if isinstance(self.pos_embed, Parameter):
            prefix = 0 if self.no_embed_class else self.prefix
            _put(self, "pos_embed", resample_positions(self.pos_embed.numpy(), before, grid, prefix))
        elif self.pos_embed is not None:
            constant = self._positions(self.positions, self.pos_embed.shape[-1])
            assert constant is not None
            self.pos_embed = constant.to(self.pos_embed.dtype).to(self.pos_embed.device)


def _put(module: Module, name: str, values: np.ndarray) -> None:
    """Replace a parameter by one with these values, of another shape."""
    old = getattr(module, name)
    new = Parameter(Tensor(values).to(old.dtype).to(old.device))
    new.requires_grad = old.requires_grad
    setattr(module, name, new)


def _place_of_last_norm(last_norm: str, pool: str, norm: str) -> str:
    """Return the attribute that has the last layer norm, or "none"."""
    if last_norm != "auto":
        return last_norm
    return "fc_norm" if pool == "mean" else "norm" if norm == "pre" else "none"


def _check_choices(distilled: bool, register_tokens: int, **chosen: str) -> None:
    """Raise ValueError if an option is none of its choices, or if a distilled model has other tokens than DeiT."""
    for name, choices in (("pool", POOLS), ("pos_embed", POSITIONS), ("last_norm", LAST_NORMS), ("act", ACTIVATIONS)):
        if chosen[name] not in choices:
            raise ValueError(f"{name} is {chosen[name]!r}; it must be one of {', '.join(choices)}")
    if distilled and (chosen["pool"] != "cls" or register_tokens):
        raise ValueError(
            f"distilled is True, so pool must be 'cls', not {chosen['pool']!r}, and register_tokens 0, not "
            f"{register_tokens}"
        )
