"""Cutting and padding: as the tokenizers library cuts, with the whole length told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serving.batching.model import Tokens
from serving.models.reading import Padding, Reader, kept_positions


def words_tokenizer() -> Tokenizer:
    """A token a word, with special tokens around and between as BERT has them."""
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2} | {f"w{number}": 3 + number for number in range(40)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return tokenizer


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


lengths = st.integers(0, 30)


@given(first=lengths, second=st.none() | lengths, max_tokens=st.integers(3, 40), cuts_left=st.booleans())
def test_texts_and_pairs_are_cut_as_the_tokenizers_library_cuts(
    first: int, second: int | None, max_tokens: int, cuts_left: bool
) -> None:
    given_text = words(first) if second is None else (words(first), words(second))
    reader: Reader[str | tuple[str, str]] = Reader(
        words_tokenizer(), max_tokens=max_tokens, cuts_left=cuts_left
    )
    cutting = words_tokenizer()
    cutting.enable_truncation(max_tokens, direction="left" if cuts_left else "right")
    [tokens] = reader.read([given_text])
    expected = cutting.encode(*([given_text] if isinstance(given_text, str) else given_text))
    assert tokens.ids.tolist() == expected.ids
    assert tokens.type_ids.tolist() == expected.type_ids
    whole = first + 2 if second is None else first + second + 3
    assert tokens.whole_length == whole
    assert (len(tokens) < tokens.whole_length) == (whole > max_tokens)


def test_the_end_token_stays_when_a_text_is_cut() -> None:
    sequences = np.array([-1, 0, 0, 0, 0, -1])
    assert kept_positions(sequences, max_tokens=4).tolist() == [0, 1, 2, 5]
    assert kept_positions(sequences, max_tokens=4, cuts_left=True).tolist() == [0, 3, 4, 5]


def test_a_prompt_goes_before_texts_and_counts() -> None:
    reader: Reader[str] = Reader(words_tokenizer(), max_tokens=10, prompt="w9 ")
    [tokens] = reader.read(["w1"])
    assert tokens.ids.tolist() == [0, 12, 4, 1]
    assert tokens.whole_length == 4


def tokens_of(*ids: int) -> Tokens:
    return Tokens(ids=np.array(ids), type_ids=np.ones(len(ids), np.int64), whole_length=len(ids))


@pytest.mark.parametrize(("on_left", "short_row"), [(False, [7, 8, 5, 5]), (True, [5, 5, 7, 8])])
def test_short_texts_are_padded_on_the_models_side(on_left: bool, short_row: list[int]) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    arrays = Padding(names=names, pad_id=5, on_left=on_left).pad([tokens_of(1, 2, 3, 4), tokens_of(7, 8)])
    used = [int(number != 5) for number in short_row]
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [[1, 2, 3, 4], short_row],
        "attention_mask": [[1, 1, 1, 1], used],
        "token_type_ids": [[1, 1, 1, 1], used],
    }


def test_a_model_gets_only_the_arrays_that_it_takes() -> None:
    padding = Padding(names=("input_ids", "attention_mask"), pad_id=0, on_left=False)
    assert list(padding.pad([tokens_of(1)])) == list(padding.largest(2, 3)) == ["input_ids", "attention_mask"]
    assert padding.largest(2, 3)["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
