"""Transformer blocks and stacks: the residual stream equals the papers' formulas."""

import block_oracles
import numpy as np
import pytest
from float64_modules import close, in_float64, normal

import tinyvit as tv
from tinyvit import nn


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_its_formula(norm: str, layer_scale: float | None) -> None:
    x = normal(2, 5, 6)
    block, w = in_float64(nn.Block(6, 2, mlp_dim=7, norm=norm, layer_scale=layer_scale))
    expected = block_oracles.block(x.numpy(), w, 2, norm)
    close(block(x), expected)
    close(block(x, read=3), expected[:, 3])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_is_its_formula(norm: str) -> None:
    x, mask = normal(2, 4, 6), np.random.default_rng(2).random((2, 1, 4, 4)) < 0.8
    encoder, w = in_float64(nn.TransformerEncoder(6, 3, 2, mlp_dim=5, norm=norm))
    assert any(name.startswith("norm.") for name in w) == (norm == "pre")
    expected = block_oracles.stack(3, lambda y, v: block_oracles.block(y, v, 2, norm, mask=mask), x.numpy(), w)
    close(encoder(x, mask), expected)
    close(encoder(x, mask, read=1), expected[:, 1])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_decoder_is_its_formula(norm: str) -> None:
    x, context = normal(2, 4, 6), normal(2, 3, 5, seed=1)
    mask, context_mask = (np.random.default_rng(i).random((2, 1, 4, n)) < 0.8 for i, n in ((2, 4), (3, 3)))
    decoder, w = in_float64(nn.TransformerDecoder(6, 2, 3, mlp_dim=5, context_dim=5, norm=norm))
    expected = block_oracles.stack(
        2, lambda y, v: block_oracles.decoder_block(y, context.numpy(), v, 3, norm, mask, context_mask), x.numpy(), w
    )
    close(decoder(x, context, mask, context_mask), expected)
    close(decoder(x, context, mask, context_mask, read=2), expected[:, 2])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_stack_without_blocks_reads_a_token_too(norm: str) -> None:
    x = normal(2, 4, 6)
    encoder, w = in_float64(nn.TransformerEncoder(6, 0, 2, norm=norm))
    expected = block_oracles.normalized(x.numpy(), block_oracles.part(w, "norm"), 1e-5) if norm == "pre" else x.numpy()
    close(encoder(x), expected)
    close(encoder(x, read=3), expected[:, 3])


def test_a_decoder_does_not_look_ahead() -> None:
    decoder, _ = in_float64(nn.TransformerDecoder(6, 2, 2))
    x, context = normal(1, 5, 6), normal(1, 3, 6, seed=1)
    (gradient,) = tv.grad(decoder(x, context)[:, 2].sum(), x)
    assert (gradient.numpy()[:, :3] != 0).all()
    assert (gradient.numpy()[:, 3:] == 0).all()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gradients_flow_through_the_stream(norm: str) -> None:
    encoder, _ = in_float64(nn.TransformerEncoder(4, 2, 2, mlp_dim=3, norm=norm))
    tv.gradcheck(encoder, normal(1, 3, 4), order=2)
    encoder(normal(1, 3, 4)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("where", ["probabilities", "projection"])
@pytest.mark.parametrize("layer", [nn.Attention, nn.CrossAttention])
def test_each_dropout_of_attention_acts_in_training_only(layer: type, where: str) -> None:
    attn = layer(6, 2, dropout=0.5)
    if where == "probabilities":
        attn.proj_drop.p = 0.0
    else:
        attn.dropout = 0.0
    x = normal(2, 5, 6).to("float32")
    arguments = (x,) if layer is nn.Attention else (x, x)
    assert (attn(*arguments).numpy() != attn(*arguments).numpy()).any()
    attn.eval()
    np.testing.assert_array_equal(attn(*arguments).numpy(), attn(*arguments).numpy())


def test_the_dropout_of_an_mlp_acts_after_both_maps() -> None:
    mlp = nn.Mlp(40, 50, dropout=0.5)
    x = normal(20, 40).to("float32")
    assert (mlp(x).numpy() == 0).mean() == pytest.approx(0.5, abs=0.1)  # after the second
    mlp.fc2.weight.assign(np.eye(40, 50, dtype=np.float32))  # shows the hidden values
    mlp.fc2.bias.assign(np.zeros(40, np.float32))
    assert (mlp(x).numpy() == 0).mean() == pytest.approx(0.75, abs=0.1)  # after both
    assert (mlp.eval()(x).numpy() != 0).all()


def test_drop_path_drops_both_branches_of_a_block() -> None:
    block, x = nn.Block(6, 2, drop_path=1.0), normal(2, 5, 6).to("float32")
    np.testing.assert_array_equal(block(x).numpy(), x.numpy())
    assert (block.eval()(x).numpy() != x.numpy()).all()


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm is 'middle'; it must be 'pre' or 'post'"):
        nn.Block(4, 2, norm="middle")
