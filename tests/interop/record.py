"""Write the files in `recorded/`: tiny random models of timm and transformers, and what those libraries compute.

    python tests/interop/record.py      # needs torch, timm and transformers

Every folder has the files as the library itself writes them, and `expected.safetensors`: images, logits, and for some
of timm's models the gradient of the sum of logits * weights with respect to each parameter.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "recorded"
SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
    "mlp_ratio": 2.0,
}
TIMM: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"global_pool": "avg", "class_token": False, "reg_tokens": 1, "init_values": 0.1},
    "options": {"qk_norm": True, "proj_bias": False, "qkv_bias": False, "act_layer": "gelu_tanh",
                "no_embed_class": True},
    "clip": {"pre_norm": True, "act_layer": "quick_gelu"},
    "gap": {"global_pool": "avg", "fc_norm": False, "img_size": (16, 24), "in_chans": 1},
    "distilled": {},
}  # fmt: skip
ARCHITECTURES = {"clip": "vit_base_patch16_clip_224", "distilled": "deit_tiny_distilled_patch16_224"}


def randomize(torch: Any, module: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def expected(torch: Any, module: Any, logits_of: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    images = rng.standard_normal(shape).astype(np.float32)
    logits = logits_of(torch.tensor(images))
    weights = rng.standard_normal(tuple(logits.shape)).astype(np.float32)
    (logits * torch.tensor(weights)).sum().backward()
    gradients = {f"gradient/{name}": p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    return {"images": images, "weights": weights, "logits": logits.detach().numpy(), **gradients}


def record_timm(torch: Any) -> None:
    import timm
    from timm.models._hub import save_for_hf

    for seed, (name, options) in enumerate(TIMM.items()):
        arguments = SMALL | options
        model = randomize(torch, timm.create_model(ARCHITECTURES.get(name, "vit_tiny_patch16_224"), **arguments), seed)
        folder = HERE / f"timm-{name}"
        sizes = arguments["img_size"]
        height, width = (sizes, sizes) if isinstance(sizes, int) else sizes
        save_for_hf(model, folder, safe_serialization=True, model_args=arguments)
        shape = (2, arguments.get("in_chans", 3), height, width)
        found = expected(torch, model, model, shape)
        if name in ("clip", "gap", "distilled"):  # gradients of the others are enough
            found = {key: array for key, array in found.items() if not key.startswith("gradient/")}
        save_file(found, folder / "expected.safetensors")


def record_hf(torch: Any) -> None:
    import transformers as t

    common = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "num_labels": 3,
    }
    mlp = {"intermediate_size": 12}
    names = {0: "cat", 1: "dog", 2: "crane"}
    models = {
        "vit": t.ViTForImageClassification(t.ViTConfig(**common, **mlp, id2label=names, qkv_bias=False)),
        "deit": t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**common, **mlp, hidden_act="gelu_new")),
        "dinov2": t.Dinov2ForImageClassification(t.Dinov2Config(**common, mlp_ratio=2)),
        "registers": t.Dinov2WithRegistersForImageClassification(t.Dinov2WithRegistersConfig(**common, mlp_ratio=2)),
    }
    processors = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 18}, "resample": 3,
                   "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
                   "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    }  # fmt: skip
    for seed, (name, model) in enumerate(models.items()):
        folder = HERE / f"hf-{name}"
        randomize(torch, model, seed).save_pretrained(folder, max_shard_size="5KB" if name == "deit" else "1GB")
        if name in processors:
            (folder / "preprocessor_config.json").write_text(json.dumps(processors[name]))
        found = expected(torch, model, lambda x, model=model: model(x).logits, (2, 3, 16, 16))
        kept = {key: value for key, value in found.items() if not key.startswith("gradient/")}
        save_file(kept, folder / "expected.safetensors")


def google_names(state: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Give the weights of a ViT of timm the names and layouts of Google's npz."""
    dim = state["cls_token"].shape[-1]
    found = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(1):
        own, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{theirs}LayerNorm_{number}/scale"] = state[f"{own}{norm}.weight"]
            found[f"{theirs}LayerNorm_{number}/bias"] = state[f"{own}{norm}.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * dim, (j + 1) * dim)
            found[f"{attention}{part}/kernel"] = state[f"{own}attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            found[f"{attention}{part}/bias"] = state[f"{own}attn.qkv.bias"][rows].reshape(heads, -1)
        found[f"{attention}out/kernel"] = state[f"{own}attn.proj.weight"].T.reshape(heads, -1, dim)
        found[f"{attention}out/bias"] = state[f"{own}attn.proj.bias"]
        for j in (0, 1):
            found[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = state[f"{own}mlp.fc{j + 1}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = state[f"{own}mlp.fc{j + 1}.bias"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def record_google(torch: Any) -> None:
    """Store a random model under Google's names, and what timm computes after it has loaded that file itself."""
    import timm

    sizes = SMALL | {"embed_dim": 64, "num_heads": 2, "mlp_ratio": 0.125, "depth": 1}  # whose heads can be inferred
    source = randomize(torch, timm.create_model("vit_tiny_patch16_224", **sizes), 40)
    state = {name: p.detach().numpy() for name, p in source.named_parameters()}
    folder = HERE / "google"
    folder.mkdir()
    np.savez_compressed(folder / "model.npz", **{k: v.astype(np.float16) for k, v in google_names(state, 2).items()})
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    widened = {name: array.astype(np.float32) for name, array in np.load(folder / "model.npz").items()}
    np.savez(folder / "wide.npz", **widened)
    model.load_pretrained(str(folder / "wide.npz"))
    larger = timm.create_model("vit_tiny_patch16_224", **sizes | {"img_size": 24}).eval()
    larger.load_pretrained(str(folder / "wide.npz"))
    (folder / "wide.npz").unlink()
    found = expected(torch, model, model, (2, 3, 16, 16))
    found = {name: array for name, array in found.items() if not name.startswith("gradient/")}
    save_file(found | {"positions": larger.pos_embed.detach().numpy()}, folder / "expected.safetensors")


def record_resampling(torch: Any) -> None:
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    rng = np.random.default_rng(0)
    positions = rng.standard_normal((1, 2 + 12, 4)).astype(np.float32)
    patches = rng.standard_normal((3, 2, 4, 4)).astype(np.float32)
    found = {"positions": positions, "patches": patches}
    for rows, columns in ((6, 8), (3, 2), (5, 3)):
        found[f"positions/{rows}x{columns}"] = resample_abs_pos_embed(
            torch.tensor(positions), [rows, columns], [3, 4], 2
        ).numpy()
    for rows, columns in ((6, 6), (3, 3), (8, 5)):
        found[f"patches/{rows}x{columns}"] = resample_patch_embed(torch.tensor(patches), [rows, columns]).numpy()
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, HERE / "resampling.safetensors")


def record_images() -> None:
    from PIL import Image
    from timm.data import create_transform

    rng = np.random.default_rng(1)
    found = {}
    for shape in ((23, 31), (27, 17), (9, 9)):
        picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        found[f"picture/{shape[0]}x{shape[1]}"] = picture
        for mode in ("center", "squash", "border"):
            for interpolation, share in (("bicubic", 0.875), ("bilinear", 1.0), ("lanczos", 0.95)):
                transform = create_transform(
                    (3, 12, 12), interpolation=interpolation, crop_pct=share, crop_mode=mode, normalize=False,
                    mean=(0.4, 0.5, 0.6), std=(1, 1, 1),
                )  # fmt: skip
                key = f"{shape[0]}x{shape[1]}/{mode}/{interpolation}/{share}"
                found[key] = np.asarray(transform(Image.fromarray(picture))).astype(np.uint8)
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, HERE / "images.safetensors")


def main() -> None:
    warnings.simplefilter("ignore")
    import torch

    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    for record in (record_timm, record_hf, record_google, record_resampling):
        record(torch)
    record_images()
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"{total:,} bytes in {HERE}")


if __name__ == "__main__":
    main()
