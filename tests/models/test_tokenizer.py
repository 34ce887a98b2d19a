"""The tokenizer of a base alone: the same as that of the base, and refused in one line where there is none."""

from __future__ import annotations

import pytest

from scumble.errors import BaseModelError, MissingFileError
from scumble.models.base import load_base
from scumble.models.tokenizer import load_tokenizer
from tests.bases import letters_model, letters_tokenizer


def test_it_is_the_tokenizer_of_the_base(tmp_path) -> None:
    letters_model().save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    alone, whole = load_tokenizer(str(tmp_path)), load_base(str(tmp_path)).tokenizer
    assert alone.get_vocab() == whole.get_vocab()
    assert alone.chat_template == whole.chat_template


def test_no_weights_are_read(tmp_path, monkeypatch) -> None:
    letters_model().save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    from scumble.models import weights

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr(weights, "read_model", fail)
    assert load_tokenizer(str(tmp_path)) is not None


def test_a_base_without_one_is_refused(tmp_path) -> None:
    letters_model().save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(MissingFileError):
        load_tokenizer(str(tmp_path / "nothing"))


@pytest.mark.real
def test_the_embedded_default() -> None:
    tokenizer = load_tokenizer("smollm2")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert tokenizer.chat_template
