"""From prompts to tokens: what the context is, what comes after it, and which files are refused."""

import json

import pytest
import torch
import transformers

from laprox_dump.errors import InputError, UsageError
from laprox_dump.prompts import Prompt, read_prompts
from laprox_dump.tokens import Encoder

TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def byte_ids(text: str) -> list[int]:
    return [b + 3 for b in text.encode()]


@pytest.fixture
def encoder(tmp_path):
    """`encoder(**options)`: an Encoder over a saved byte tokenizer (ByT5), which closes every text with its end token."""
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)

    def make(chat_template=False, max_tokens=None, vocabulary=384):
        return Encoder(str(tmp_path), vocabulary, chat_template, max_tokens)

    return make


def test_text_without_a_closing_token(encoder):
    tokens = encoder().encode(Prompt("p", "Hello, wörld\n"))
    assert tokens.context.tolist() == byte_ids("Hello, wörld\n")
    assert tokens.question.tolist() == [] and tokens.continuation is None
    assert tokens.facts == {"prompt": "Hello, wörld\n"}


def test_the_question_comes_after_the_context(encoder):
    tokens = encoder().encode(Prompt("p", "Facts.", question=" Why?", continuation=" So."))
    assert tokens.context.tolist() == byte_ids("Facts.")
    assert tokens.question.tolist() == byte_ids(" Why?")
    assert tokens.continuation.tolist() == byte_ids(" So.")
    assert tokens.facts["question"] == " Why?"


def test_chat_template_splits_before_the_question(encoder):
    chat = encoder(chat_template=True)
    whole = chat.encode(Prompt("p", "Facts."))
    assert whole.context.tolist() == byte_ids("<user>Facts.</user><bot>") and len(whole.question) == 0
    split = chat.encode(Prompt("p", "Facts.", question=" Why?"))
    assert split.context.tolist() == byte_ids("<user>Facts.")
    assert split.question.tolist() == byte_ids(" Why?</user><bot>")


def test_cut_in_the_middle(encoder):
    tokens = encoder(max_tokens=5).encode(Prompt("p", "abcdefghij"))
    assert tokens.context.tolist() == byte_ids("abcij")
    assert tokens.facts["tokens_before_cut"] == 10
    assert encoder(max_tokens=10).encode(Prompt("p", "abcdefghij")).context.tolist() == byte_ids("abcdefghij")


def test_token_ids_need_no_tokenizer(tmp_path):
    tokens = Encoder(str(tmp_path / "nothing here"), 50, False, None).encode(Prompt("p", token_ids=[1, 49, 3], continuation=[7]))
    assert tokens.context.tolist() == [1, 49, 3] and tokens.continuation.tolist() == [7]
    assert tokens.context.dtype == torch.int64


@pytest.mark.parametrize(
    "prompt, options, kind, message",
    [
        (Prompt("p", ""), {}, InputError, "prompt p: it is empty"),
        (Prompt("p", token_ids=[3, 384]), {}, InputError, r"expected 0..383 .*, found 3..384"),
        (Prompt("p", token_ids=[3, -1]), {}, InputError, r"found -1..3"),
        (Prompt("p", token_ids=[3]), {"chat_template": True}, UsageError, "--chat-template needs text"),
    ],
)
def test_prompts_that_are_refused(encoder, prompt, options, kind, message):
    with pytest.raises(kind, match=message):
        encoder(**options).encode(prompt)


def test_no_tokenizer_and_no_chat_template(encoder, tmp_path):
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        Encoder(str(tmp_path / "nowhere"), 384, False, None).encode(Prompt("p", "x"))
    chat = encoder(chat_template=True)
    chat.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="has no chat template"):
        chat.encode(Prompt("p", "x"))


def test_text_file_is_one_prompt_to_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo ü\n".encode())
    assert read_prompts(str(tmp_path / "a.txt")) == [Prompt("a", "one\r\n\ntwo ü\n")]


def test_json_lines(tmp_path):
    lines = [{"id": "x", "prompt": "a", "question": "q", "continuation": "c"}, {"token_ids": [1, 2], "continuation": [3]}]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert read_prompts(str(tmp_path / "p.jsonl")) == [Prompt("x", "a", None, "q", "c"), Prompt("00003", "", [1, 2], None, [3])]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"prompt": "a"', r"p.jsonl:1: not JSON"),
        ('{"prompt": "a"}\n[1]', r"p.jsonl:2: expected an object"),
        ('{"prompt": "a", "token_ids": [1]}', "either `prompt` or `token_ids`"),
        ('{"prompt": "a", "qestion": "b"}', "unknown key 'qestion'"),
        ('{"prompt": 3}', "prompt: expected text, found 3"),
        ('{"token_ids": [1, true]}', "token_ids: expected a list of integers"),
        ('{"prompt": "a", "id": "../b"}', "id '../b'"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "the id 'x' occurs 2 times"),
    ],
)
def test_json_lines_that_are_refused(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_files_that_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match="latin.txt: expected UTF-8 text, found the byte 0xff at offset 3"):
        read_prompts(str(tmp_path / "latin.txt"))
    with pytest.raises(InputError, match="none.txt: cannot be read: No such file"):
        read_prompts(str(tmp_path / "none.txt"))
