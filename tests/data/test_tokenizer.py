"""The tokenizer: texts to token ids and back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer

from tinyvit.data.tokenizer import END, PAD, SPECIAL, UNK, Tokenizer, padded, words_of
from tinyvit.errors import DataError

TEXTS = ["Is there a red circle?", "a circle, a square."]


def test_a_text_is_split_into_words_and_punctuation_in_lower_case():
    assert words_of(TEXTS[0] + "\n") == ["is", "there", "a", "red", "circle", "?"]
    assert words_of("") == []


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=50)
def test_the_texts_of_a_vocabulary_have_no_unknown_words(texts):
    tokenizer = Tokenizer.build(texts)
    assert tokenizer.words[:6] == SPECIAL
    for text in texts:
        ids = tokenizer.encode(text)
        assert all(6 <= i < len(tokenizer) for i in ids)
        assert tokenizer.decode(ids) == " ".join(words_of(text))
        assert tokenizer.unknown(text) == []


def test_unknown_words_are_listed_and_decoded():
    tokenizer = Tokenizer.build(TEXTS)
    assert tokenizer.encode("a zebra")[1] == UNK
    assert tokenizer.unknown("A zebra, a yak") == ["zebra", "yak"]
    assert tokenizer.decode([PAD, *tokenizer.encode("a zebra"), END]) == "a <unk>"


def test_a_saved_vocabulary_is_read_back(tmp_path):
    tokenizer = Tokenizer.build(TEXTS)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.read(tmp_path / "tokenizer.json") == tokenizer


def test_the_tokenizers_library_reads_the_same_vocabulary(tmp_path):
    library = peer("tokenizers")
    tokenizer = Tokenizer.build(TEXTS)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, "a zebra?"]:
        assert theirs.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a tokenizer.json"),
        ("[]", "is not a tokenizer.json"),
        (json.dumps({"model": {"type": "BPE", "vocab": {}}}), "type BPE; only WordLevel"),
        (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}}}), "must begin with"),
        (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 3}}}), "not 0, 1, 2"),
        *(
            (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": x}}}), "integers")
            for x in (None, "0", 0.0, True, [])
        ),
        *((json.dumps({"model": {"type": "WordLevel", "vocab": x}}), "no model") for x in (None, [], "a", 3)),
        *((json.dumps(x), "no model") for x in (3, None, {"model": None}, {"model": []}, {"model": {}}, {})),
        ("[" * 100_000, "nested"),
        ('{"model":' + "[" * 500 + "]" * 500 + "}", "nested more than 100"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.read(tmp_path / "t.json")
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    "key", ["normalizer", "pre_tokenizer", "decoder", "truncation", "added_tokens", "unk_token", "x"]
)
def test_another_way_to_split_words_is_refused(tmp_path, key):
    path = tmp_path / "tokenizer.json"
    Tokenizer.build(TEXTS).save(path)
    document = json.loads(path.read_text())
    (document["model"] if key == "unk_token" else document)[key] = {"type": "BertNormalizer"}
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"another tokenizer than tinyvit has: {key!r}"):
        Tokenizer.read(path)


def test_rows_are_padded():
    np.testing.assert_array_equal(padded([[7], [8, 9]]), [[7, PAD], [8, 9]])
    assert padded([[7]], 3).shape == (1, 3)
    with pytest.raises(ValueError, match="the longest has 2 tokens; at most 1 are allowed"):
        padded([[7, 8]], 1)
