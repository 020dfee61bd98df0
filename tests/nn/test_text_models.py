"""The encoder-decoder: masks never leak, cached equals uncached, searches agree, and it learns."""

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import Generator, default_generator
from tinyvit.data.tokenizer import END, PAD, START, padded
from tinyvit.engine import Tensor
from tinyvit.models import EncoderDecoder, TextDecoder, beam_search, greedy, sample
from tinyvit.models.generate import kept_probabilities

FORMS = [
    {"norm": "post"}, {"norm": "pre"}, {"positions": "learned"}, {"tied": False, "norm": "pre"},
]  # fmt: skip
SOURCE = np.array([[7, 9, 8, 6], [10, 6, PAD, PAD], [8, 8, 7, PAD]])
TARGET = np.array([[START, 6, 8, 9, 7], [START, 6, 10, PAD, PAD], [START, 7, 8, 8, PAD]])


def tiny(**options) -> EncoderDecoder:
    """A float64 model whose weights are large enough for every part to matter."""
    tv.manual_seed(0)
    model = EncoderDecoder(11, dim=8, depth=2, heads=2, mlp_dim=12, max_length=7, **options).to("float64")
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.assign(0.5 * rng.standard_normal(p.shape))
    return model.eval()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_future_and_the_padding_change_nothing(form):
    model = tiny(**form)
    logits = model(SOURCE, TARGET).numpy()
    for n in range(1, 5):
        changed = TARGET.copy()
        changed[:, n:] = (changed[:, n:] + 3) % 11
        after = model(SOURCE, changed).numpy()
        np.testing.assert_array_equal(after[:, :n], logits[:, :n])
        assert (after[:, n] != logits[:, n]).any(axis=-1).all()
    longer = np.pad(SOURCE, ((0, 0), (0, 3)), constant_values=PAD)
    np.testing.assert_allclose(model(longer, TARGET).numpy(), logits, rtol=1e-12)
    alone = model(SOURCE[1:2, :2], TARGET[1:2, :3]).numpy()
    np.testing.assert_allclose(alone, logits[1:2, :3], rtol=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_cached_logits_equal_the_uncached_ones(form):
    model = tiny(**form)
    context, mask = model.encode(SOURCE)
    whole = model.decoder(TARGET, context, mask).numpy()
    for cuts in ([1, 1, 1, 1, 1], [2, 3], [1, 4]):
        cache, start = model.decoder.new_cache(), 0
        for n in cuts:
            part = model.decoder(TARGET[:, start : start + n], context, mask, cache).numpy()
            np.testing.assert_allclose(part, whole[:, start : start + n], rtol=1e-11, atol=1e-12)
            start += n


def test_a_selected_cache_goes_on_as_its_rows():
    model = tiny()
    context, mask = model.encode(SOURCE)
    cache, rows = model.decoder.new_cache(), np.array([2, 0, 0])
    model.decoder(TARGET[:, :2], context, mask, cache)
    cache.select(rows)
    part = model.decoder(TARGET[rows, 2:], context[rows], mask[rows], cache).numpy()
    np.testing.assert_allclose(part, model(SOURCE[rows], TARGET[rows]).numpy()[:, 2:], rtol=1e-11)


def test_a_permuted_batch_gives_permuted_logits():
    model, order = tiny(), [2, 0, 1]
    np.testing.assert_allclose(model(SOURCE[order], TARGET[order]).numpy(), model(SOURCE, TARGET).numpy()[order])


def test_one_table_serves_three_times_where_it_is_tied():
    tied, own = tiny(), tiny(tied=False)
    assert len({id(p) for p in tied.parameters()}) + 3 == len({id(p) for p in own.parameters()})
    assert tied.encoder.embedding is tied.decoder.embedding
    tied(SOURCE, TARGET).sum().backward()
    assert all(p.grad is not None for p in tied.parameters())
    copy = tiny()
    copy.load_state_dict(tied.state_dict())


@pytest.mark.parametrize("form", [{"norm": "post"}, {"norm": "pre", "positions": "learned", "tied": False}], ids=str)
def test_gradcheck_of_every_parameter(form):
    tv.manual_seed(0)
    model = EncoderDecoder(9, dim=4, depth=1, heads=2, mlp_dim=3, max_length=4, **form).to("float64")
    names = [name for name, _ in model.named_parameters()]

    def loss(*parameters: Tensor) -> Tensor:
        for name, p in zip(names, parameters, strict=True):
            *path, last = name.split(".")
            vars(functools.reduce(getattr, path, model))[last] = p  # off the record: it is no Parameter
            if name == "decoder.embedding.words.weight" and model.encoder.embedding is model.decoder.embedding:
                vars(model.encoder.embedding.words)["weight"] = p
        return F.cross_entropy(model([[6, 7, PAD]], [[START, 8]]), [[8, END]])

    tv.gradcheck(loss, list(model.parameters()), atol=1e-6, rtol=1e-4)


def test_the_loss_of_one_batch_falls_near_zero():
    tv.manual_seed(0)
    model = EncoderDecoder(11, dim=16, depth=1, heads=2, mlp_dim=32, max_length=7, norm="pre")
    optimizer = tv.optim.Adam(model.parameters(), lr=1e-2)
    labels = np.concatenate([TARGET[:, 1:], np.full((3, 1), PAD)], axis=1)
    labels[np.arange(3), [4, 2, 3]] = END
    for _ in range(80):
        loss = F.cross_entropy(model(SOURCE, TARGET), labels, ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    expected = [[6, 8, 9, 7], [6, 10], [7, 8, 8]]
    context, mask = model.eval().encode(SOURCE)
    assert greedy(model.decoder, context, mask, 7) == expected
    assert beam_search(model.decoder, context, mask, 7, beams=3) == expected
    assert sample(model.decoder, context, mask, 7, temperature=0.01) == expected


# Writing ----------------------------------------------------------------------------------------------------


def log_probabilities(model, source, texts):
    """Of each text (a list of words), without the cache, `<pad>` and `<start>` being impossible."""
    target = padded([[START, *words] for words in texts])
    logits = model(np.repeat(source, len(texts), axis=0), target[:, :-1]).numpy()
    logits[..., [PAD, START]] = -np.inf
    logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return np.array([sum(row[n, word] for n, word in enumerate(t)) for row, t in zip(logits, texts, strict=True)])


def test_one_beam_is_greedy():
    model = tiny()
    context, mask = model.encode(SOURCE)
    for length in (1, 4, 7):
        texts = greedy(model.decoder, context, mask, length)
        assert beam_search(model.decoder, context, mask, length, beams=1) == texts
        assert sample(model.decoder, context, mask, length, top_k=1) == texts
        assert all(len(text) <= length for text in texts)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_many_beams_find_the_best_of_all_texts(penalty):
    model = tiny()
    context, mask = model.encode(SOURCE)
    words = range(END, 11)
    texts = [[END]] + [[w, END] for w in words if w != END]
    texts += [[*pair, w] for pair in itertools.product(words, repeat=2) if END not in pair for w in words]
    lengths = np.array([len(text) for text in texts])
    for row in range(3):
        scores = log_probabilities(model, SOURCE[row : row + 1], texts) / ((5 + lengths) / 6) ** penalty
        best = [w for w in texts[int(np.argmax(scores))] if w != END]
        found = beam_search(model.decoder, context[row : row + 1], mask[row : row + 1], 3, 729, penalty)
        assert found == [best]


def test_a_batch_is_searched_as_each_of_its_rows():
    decoder, written = tiny().decoder, set()
    for seed, beams in itertools.product(range(4), (1, 3)):
        context = Tensor(3 * np.random.default_rng(seed).standard_normal((4, 3, 8)))
        alone = [beam_search(decoder, context[i : i + 1], None, 6, beams)[0] for i in range(4)]
        assert beam_search(decoder, context, None, 6, beams) == alone
        written.add(len(set(map(tuple, alone))))
    assert max(written) > 2  # the contexts matter, or nothing was tested


class Table:
    """A decoder whose next token depends on the last one only, by a table of probabilities."""

    embedding = SimpleNamespace(max_length=9)

    def __init__(self, **probabilities):
        self.logits = np.full((7, 7), -40.0)
        for key, probability in probabilities.items():
            last, following = ({"start": START, "end": END, "word": 6}[name] for name in key.split("_"))
            self.logits[last, following] = np.log(probability)

    def new_cache(self):
        return SimpleNamespace(select=lambda rows: None)

    def __call__(self, ids, context, mask, cache):
        return Tensor(self.logits[ids])


@pytest.mark.parametrize(("penalty", "best"), [(0.0, []), (1.8, []), (2.0, [6])])
def test_the_penalty_counts_the_tokens_of_a_text_and_its_end(penalty, best):
    # The empty text has the log-probability -0.75, one word -1, which 7/6 raised to the penalty divides.
    empty, word = np.exp(-0.75), np.exp(-1)
    after = word / (1 - empty)
    decoder = Table(start_end=empty, start_word=1 - empty, word_end=after, word_word=1 - after)
    assert beam_search(decoder, Tensor(np.zeros((1, 1, 1))), None, 2, 4, penalty) == [best]


def test_sampling_draws_from_its_generator_alone():
    model = tiny()
    context, mask = model.encode(SOURCE)
    before = default_generator.state_dict()
    one, same, other = (
        sample(model.decoder, context, mask, 6, temperature=9.0, generator=Generator(seed)) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert default_generator.state_dict() == before


def test_drawn_words_follow_their_probabilities():
    model = tiny()
    context, mask = model.encode(SOURCE[:1])
    rows = np.zeros(4000, int)
    drawn = sample(model.decoder, context[rows], mask[rows], 1, temperature=2.0, generator=Generator(3))
    counts = np.bincount([text[0] if text else END for text in drawn], minlength=11) / len(rows)
    logits = model(SOURCE[:1], [[START]]).numpy()[0, 0] / 2
    logits[[PAD, START]] = -np.inf
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    assert np.abs(counts - expected).max() < 5 * 0.5 / len(rows) ** 0.5


def test_only_the_likeliest_words_are_kept():
    logits = np.log([[0.1, 0.4, 0.2, 0.3]])
    np.testing.assert_allclose(kept_probabilities(logits, 0, 1.0), [[0.1, 0.4, 0.2, 0.3]])
    np.testing.assert_allclose(kept_probabilities(logits, 2, 1.0), [[0, 4 / 7, 0, 3 / 7]])
    np.testing.assert_allclose(kept_probabilities(logits, 0, 0.69), [[0, 4 / 7, 0, 3 / 7]])
    np.testing.assert_allclose(kept_probabilities(logits, 0, 0.71), [[0, 4 / 9, 2 / 9, 3 / 9]])
    np.testing.assert_allclose(kept_probabilities(logits, 3, 0.01), [[0, 1, 0, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: m.decoder(np.full((1, 8), 6), c), r"ids have shape \(1, 8\) after 0 tokens"),
        (lambda m, c: greedy(m.decoder, c, None, 8), "max_length is 8; it must be from 1 to 7"),
        (lambda m, c: beam_search(m.decoder, c, None, 3, beams=0), "beams is 0"),
        (lambda m, c: sample(m.decoder, c, None, 3, temperature=0.0), "temperature is 0.0"),
        (lambda m, c: sample(m.decoder, c, None, 3, top_p=0.0), "top_p 0.0"),
        (lambda m, c: TextDecoder(9, 4, 1, 1, positions="none"), "positions is 'none'; it must be one of sincos, lea"),
        (lambda m, c: m.decoder([[99]], c), "ids go from 99 to 99"),
    ],
)
def test_bad_input_is_refused(call, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        call(model, model.encode(SOURCE[:1])[0])
