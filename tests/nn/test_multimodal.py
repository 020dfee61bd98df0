"""Models of images and texts: nothing leaks, parts can be replaced, gradients are right, and each learns."""

import functools
import itertools

import numpy as np
import pytest
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import nn
from tinyvit.data.tokenizer import CLS, END, MASK, PAD, SPECIAL, START
from tinyvit.engine import Tensor
from tinyvit.models import (
    VQA,
    Captioner,
    ConvEncoder,
    CrossFusion,
    JointFusion,
    MaskedModel,
    ProductFusion,
    TextDecoder,
    TextEmbedding,
    TextEncoder,
    TwoTowers,
    ViT,
    greedy,
)
from tinyvit.models.masked import IGNORED, choose_patches, hide_tokens, visible_patches

DIM, HEADS, WORDS = 8, 2, 12
QUESTIONS = np.array([[CLS, 6, 7, 8], [CLS, 9, PAD, PAD], [CLS, 8, 8, PAD], [CLS, 11, 6, PAD]])
CAPTIONS = np.array([[START, 6, 7, END], [START, 8, END, PAD], [START, 9, 9, END], [START, 10, END, PAD]])


def some_images(count=4, shape=(2, 4, 4)):
    return np.random.default_rng(3).standard_normal((count, *shape))


def vision(depth=1, **options):
    return ViT(4, 2, 0, DIM, depth, HEADS, mlp_dim=6, in_channels=2, pool="first", **options)


def text():
    return TextEncoder(WORDS, DIM, 1, HEADS, mlp_dim=6, max_length=6)


def vqa(fusion):
    if fusion == "cnn":
        parts = ConvEncoder((16, 16), 2, DIM, channels=2), text(), ProductFusion(DIM)
    elif fusion == "cross":
        parts = vision(), text(), CrossFusion(DIM, 1, HEADS, 6)
    else:
        parts = vision(0), TextEmbedding(WORDS, DIM, 6), JointFusion(DIM, 1, HEADS, 6)
    return VQA(*parts, DIM, 3)


def question_images(fusion):
    return some_images(shape=(2, 16, 16) if fusion == "cnn" else (2, 4, 4))


def masked_loss(model, order=((2, 0, 3, 1), (1, 3, 2, 0)), asked=QUESTIONS[:2]):
    """Of two images and texts, the last two patches of `order` and the words 7 and 9 hidden."""
    images, order = some_images(2).astype(model.norm.weight.dtype if model.text else np.float64), np.array(order)
    read = np.where(np.isin(asked, [7, 9]), MASK, asked)
    pixels, logits = model(images, order, 2, read)
    loss = Tensor(np.zeros((), images.dtype))
    if pixels is not None:
        loss = loss + F.mse_loss(pixels, model.hidden_pixels(images, order, 2))
    if logits is not None:
        loss = loss + F.cross_entropy(logits, np.where(read == MASK, asked, IGNORED), ignore_index=IGNORED)
    return loss


def clip_loss(model):
    return F.contrastive_loss(*model(some_images().astype(model.logit_scale.dtype), QUESTIONS))


def vqa_loss(fusion):
    def loss(model):
        images = question_images(fusion).astype(model.head.weight.dtype)
        return F.cross_entropy(model(images, QUESTIONS), [0, 1, 2, 0])

    return loss


def caption_loss(model):
    images = some_images().astype(model.decoder.embedding.words.weight.dtype)
    return F.cross_entropy(model(images, CAPTIONS[:, :-1]), CAPTIONS[:, 1:], ignore_index=PAD)


def video_loss(model):
    videos = some_images(3, (2, 3, 4, 4)).astype(model.head.weight.dtype)
    return F.cross_entropy(model(videos), [0, 1, 2])


MODELS = {
    "vqa cnn": (lambda: vqa("cnn"), vqa_loss("cnn")),
    "vqa cross": (lambda: vqa("cross"), vqa_loss("cross")),
    "vqa joint": (lambda: vqa("joint"), vqa_loss("joint")),
    "captioner": (
        lambda: Captioner(vision(), TextDecoder(WORDS, DIM, 1, HEADS, mlp_dim=6, max_length=6)),
        caption_loss,
    ),
    "two towers": (lambda: TwoTowers(vision(), text(), DIM), clip_loss),
    "masked patches": (lambda: MaskedModel(vision(), None, DIM, HEADS), masked_loss),
    "masked words": (lambda: MaskedModel(None, text(), DIM, HEADS, WORDS), masked_loss),
    "masked both": (lambda: MaskedModel(vision(), text(), DIM, HEADS, WORDS), masked_loss),
    "video": (
        lambda: ViT((2, 4, 4), (1, 2, 2), 3, DIM, 1, HEADS, mlp_dim=6, in_channels=3, pool="mean"),
        video_loss,
    ),
}  # fmt: skip


def made(name):
    tv.manual_seed(0)
    return MODELS[name][0]()


def in_float64(model):
    rng = np.random.default_rng(1)
    for p in model.to("float64").parameters():
        p.assign(p.numpy() + 0.3 * rng.standard_normal(p.shape))
    return model.eval()


def put(model, names, parameters):
    for name, p in zip(names, parameters, strict=True):
        *path, last = name.split(".")
        vars(functools.reduce(getattr, path, model))[last] = p  # off the record: it is no Parameter


@pytest.mark.parametrize("name", MODELS)
def test_gradcheck_along_random_directions(name):
    """Every parameter at once, along three directions: float64, with all of the model in it."""
    model, loss = in_float64(made(name)), MODELS[name][1]
    names, values = zip(*((n, p.numpy().copy()) for n, p in model.named_parameters()), strict=True)
    directions = [
        [np.random.default_rng((i, j)).standard_normal(v.shape) for j, v in enumerate(values)] for i in range(3)
    ]

    def moved(*steps: Tensor) -> Tensor:
        moves = [
            sum((t * d[j] for t, d in zip(steps, directions, strict=True)), Tensor(v)) for j, v in enumerate(values)
        ]
        put(model, names, moves)
        return loss(model)

    steps = [Tensor(np.zeros(()), requires_grad=True) for _ in directions]
    tv.gradcheck(moved, steps, atol=1e-6, rtol=1e-4)
    gradients = tv.grad(moved(*steps), steps)
    assert all(g.item() != 0 for g in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    model = made(name).to("float64")
    MODELS[name][1](model).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", quick_first(MODELS, 2))
def test_the_loss_of_one_batch_falls(name):
    model, loss = made(name), MODELS[name][1]
    if name == "masked patches":
        model.to("float64")
    optimizer = tv.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        value = loss(model)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.06


# Nothing leaks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["cnn", "cross", "joint"])
def test_padding_of_questions_changes_no_answer_and_batches_permute(fusion):
    model, images = in_float64(made(f"vqa {fusion}")), question_images(fusion)
    logits = model(images, QUESTIONS).numpy()
    longer = np.pad(QUESTIONS, ((0, 0), (0, 2)), constant_values=PAD)
    np.testing.assert_allclose(model(images, longer).numpy(), logits, rtol=1e-10)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(model(images[order], QUESTIONS[order]).numpy(), logits[order], rtol=1e-10)
    other = QUESTIONS.copy()
    other[:, 1] = 10
    assert (model(images, other).numpy() != logits).any(axis=1).all()
    assert (model(images[::-1], QUESTIONS).numpy() != logits).any(axis=1).all()


@pytest.mark.parametrize("fusion", ["cnn", "cross", "joint"])
def test_questions_that_share_an_image_are_answered_and_learnt_from_as_if_each_had_its_own(fusion):
    model, images, image_of = in_float64(made(f"vqa {fusion}")), question_images(fusion), [1, 0, 1, 1]
    shared = model(images[:2], QUESTIONS, image_of)
    alone = model(images[image_of], QUESTIONS)
    np.testing.assert_allclose(shared.numpy(), alone.numpy(), rtol=1e-10)
    found, expected = (tv.grad((y * y).sum(), list(model.parameters())) for y in (shared, alone))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-8, atol=1e-10)


def test_an_image_that_several_questions_share_is_projected_once():
    model, projected = made("vqa cross"), []

    class Counted(nn.Linear):
        def forward(self, x):
            projected.append(x.shape[0])
            return super().forward(x)

    model.fusion.decoder.blocks[0].cross.kv = Counted(DIM, 2 * DIM)
    model(some_images(2).astype(np.float32), QUESTIONS, [1, 0, 1, 1])
    assert projected == [2]


def test_towers_do_not_see_padding_and_batches_permute():
    model, order = in_float64(made("two towers")), [2, 0, 3, 1]
    images, words, _ = (t.numpy() for t in model(some_images(), QUESTIONS))
    np.testing.assert_allclose((images**2).sum(axis=1), 1)
    longer = np.pad(QUESTIONS, ((0, 0), (0, 2)), constant_values=PAD)
    np.testing.assert_allclose(model.encode_texts(longer).numpy(), words, rtol=1e-10)
    again = model(some_images()[order], QUESTIONS[order])
    np.testing.assert_allclose(again[0].numpy(), images[order], rtol=1e-10)
    np.testing.assert_allclose(again[1].numpy(), words[order], rtol=1e-10)


def test_captions_do_not_see_what_comes_and_cached_equals_uncached():
    model = in_float64(made("captioner"))
    logits = model(some_images(), CAPTIONS).numpy()
    changed = CAPTIONS.copy()
    changed[:, 2:] = 7
    np.testing.assert_array_equal(model(some_images(), changed).numpy()[:, :2], logits[:, :2])
    context, mask = model.encode(some_images())
    cache = model.decoder.new_cache()
    steps = [model.decoder(CAPTIONS[:, n : n + 1], context, mask, cache).numpy() for n in range(4)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), logits, rtol=1e-10)
    assert len(greedy(model.decoder, context, mask, 5)) == 4


def test_hidden_patches_are_not_seen():
    model = in_float64(made("masked both"))
    images, order = some_images(1), np.array([[2, 0, 3, 1]])
    pixels, logits = (t.numpy() for t in model(images, order, 2, QUESTIONS[:1]))
    patches = F.patches(Tensor(np.arange(32.0).reshape(1, 2, 4, 4)), 2).numpy().astype(int)[0]
    for patch, seen in zip(order[0], (True, True, False, False), strict=True):
        changed = images.copy()
        changed.reshape(-1)[patches[patch]] += 1
        after, words = (t.numpy() for t in model(changed, order, 2, QUESTIONS[:1]))
        assert (after != pixels).any() == seen
        assert (words != logits).any() == seen


def test_predictions_follow_the_order_of_the_patches():
    model, images = in_float64(made("masked patches")), some_images(1)
    pixels = model(images, np.array([[2, 0, 3, 1]]), 2, None)[0].numpy()
    assert (pixels[:, 0] != pixels[:, 1]).all()
    np.testing.assert_allclose(model(images, np.array([[0, 2, 3, 1]]), 2, None)[0].numpy(), pixels, rtol=1e-10)
    np.testing.assert_allclose(model(images, np.array([[2, 0, 1, 3]]), 2, None)[0].numpy(), pixels[:, ::-1], rtol=1e-10)


def test_the_factor_of_the_cosines_grows_up_to_100():
    model = made("two towers")
    for logarithm, factor in ((np.log(1 / 0.07), 1 / 0.07), (4.0, np.exp(4.0)), (5.0, 100.0)):
        model.logit_scale.assign(np.array(logarithm))
        assert model(some_images().astype(np.float32), QUESTIONS)[2].item() == pytest.approx(factor)


def test_what_is_hidden_of_images():
    order = choose_patches(50, 9, np.random.default_rng(0))
    assert (np.sort(order, axis=1) == np.arange(9)).all()
    assert len({tuple(row) for row in order}) == 50
    assert [visible_patches(49, share) for share in (0.75, 0.999, 0.001)] == [12, 1, 48]
    model = in_float64(made("masked patches"))
    truth = model.hidden_pixels(some_images(), choose_patches(4, 4, np.random.default_rng(1)), 1)
    assert truth.shape == (4, 3, 8)
    np.testing.assert_allclose(truth.mean(axis=-1), 0, atol=1e-12)
    order = np.tile(np.arange(4), (4, 1))
    patches = F.patches(Tensor(some_images()), 2).numpy()
    expected = (patches - patches.mean(axis=-1, keepdims=True)) / np.sqrt(patches.var(axis=-1, keepdims=True) + 0.01)
    np.testing.assert_allclose(model.hidden_pixels(some_images(), order, 1), expected[:, 1:], rtol=1e-10)


def test_words_are_hidden_eight_of_ten_by_the_mask():
    words = np.tile(np.array([CLS, *range(6, 30), PAD]), (4000, 1))
    read, asked = hide_tokens(words, 30, 0.15, np.random.default_rng(0))
    chosen = asked != IGNORED
    assert not chosen[:, [0, -1]].any()
    np.testing.assert_array_equal(asked[chosen], words[chosen])
    np.testing.assert_array_equal(read[~chosen], words[~chosen])
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.005)
    assert (read[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (read[chosen] == asked[chosen]).mean() == pytest.approx(0.1 + 0.1 / 24, abs=0.02)
    others = read[chosen & (read != MASK)]
    assert (others.min(), others.max()) == (len(SPECIAL), 29)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_share_hides_one_word_of_a_batch_and_never_a_special_token(seed):
    words = np.array([[CLS, 7, 8, PAD], [CLS, 9, PAD, PAD]])
    _, asked = hide_tokens(words, 30, 1e-9, np.random.default_rng(seed))
    assert (asked != IGNORED).sum() == 1
    assert (asked != IGNORED)[:, 1:].any()
    _, asked = hide_tokens(np.array([[CLS, PAD]]), 30, 0.9, np.random.default_rng(seed))
    assert (asked == IGNORED).all()


# Parts ----------------------------------------------------------------------------------------------------------------


def test_any_part_of_a_vqa_model_can_be_replaced_and_frozen():
    model = made("vqa cross")
    model.vision.requires_grad_(False)
    vqa_loss("cross")(model).backward()
    assert all(p.grad is None for p in model.vision.parameters())
    assert any(p.grad is not None for p in model.text.parameters())
    model.fusion = ProductFusion(DIM)
    assert model(some_images().astype(np.float32), QUESTIONS).shape == (4, 3)
    model.vision = vision(2)
    assert model(some_images().astype(np.float32), QUESTIONS).shape == (4, 3)


def test_attention_is_kept_while_asked_for():
    model = made("vqa joint").eval()
    with nn.keep_attention(model) as kept:
        model(some_images().astype(np.float32), QUESTIONS)
    ((name, (weights,)),) = kept.items()
    assert name == "fusion.encoder.blocks.0.attn"
    assert weights.shape == (4, HEADS, 8, 8)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert (weights[1, :, :, 2:4] == 0).all()  # padding
    model(some_images().astype(np.float32), QUESTIONS)
    assert len(kept[name]) == 1


# Patches of any number of axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2,), (2, 3), (1, 2, 3), (2, 1, 1, 2)])
def test_patches_are_cut_row_by_row_whatever_the_axes(size):
    counts = [2, 1, 3, 2][: len(size)]
    x = np.random.default_rng(0).standard_normal((2, 3, *(c * p for c, p in zip(counts, size, strict=True))))
    expected = [
        x[(slice(None), slice(None), *(slice(i * p, (i + 1) * p) for i, p in zip(place, size, strict=True)))]
        for place in itertools.product(*map(range, counts))
    ]
    expected = np.stack([e.reshape(2, -1) for e in expected], axis=1)
    np.testing.assert_array_equal(F.patches(Tensor(x), size).numpy(), expected)


def test_patches_of_videos_have_gradients():
    tv.gradcheck(lambda x: F.patches(x, 2), Tensor(some_images(1, (2, 2, 4, 2)), requires_grad=True), order=2)


def test_a_video_of_one_frame_is_an_image():
    image, video = (
        ViT(4, 2, 3, DIM, 1, HEADS, in_channels=2),
        ViT((1, 4, 4), (1, 2, 2), 3, DIM, 1, HEADS, in_channels=2),
    )
    state = image.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, None]
    video.load_state_dict(state)
    pictures = some_images().astype(np.float32)
    np.testing.assert_allclose(video(pictures[:, None]).numpy(), image(pictures).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"images have shape \(4, 2, 4, 4\); this model takes \(B, 1, 2, 4, 4\)"):
        video(pictures)
    with pytest.raises(ValueError, match="not patches in a grid"):
        ViT((2, 4, 4), 2, 3, DIM, 1, HEADS, pos_embed="sincos2d")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedModel(None, None, 8, 2), "vision and text are both None"),
        (lambda: MaskedModel(ViT(4, 2, 0, 8, 1, 2), None, 8, 2), "vision has 1 tokens before its patches"),
        (lambda: ConvEncoder((20, 16), 3, 8), r"image_size is \(20, 16\); .*both sides must be multiples of 16"),
        (lambda: F.patches(Tensor(np.zeros((1, 1, 4, 4, 4))), (2, 2)), "size is"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
