"""Text is tokenised whole and cut where its parts meet; a chat template may neither change nor repeat what it is given."""

import json

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import Metaspace

from laprox_dump.errors import InputError
from laprox_dump.prompts import Prompt
from laprox_dump.tokens import Encoder

PIECES = ["<s>", "</s>", "▁", "▁Facts", ".", "▁Why", "Why", "?", "▁So", "So", "Fac", "ts", "\n", "x", "▁x", "y"]
TEMPLATE = "{% for m in messages %}<user>MESSAGE</user>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture
def spaces(tmp_path):
    """An Encoder whose tokenizer puts a space before every text, as Llama's does, and a start token before its first."""
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="y"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(".", "isolated"),
            pre_tokenizers.Split("?", "isolated"),
        ]
    )
    tokenizer.decoder = Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(tmp_path)
    return Encoder(str(tmp_path), len(PIECES), False, None)


def pieces(ids) -> list[str]:
    return [PIECES[i] for i in ids.tolist()]


def test_no_space_that_nobody_wrote(spaces):
    """Alone, the question "Why?" would begin with a space; here it follows the full stop directly."""
    assert pieces(spaces._checked("prompt p", spaces._tokenise("Why?", False)[0])) == ["▁Why", "?"]
    tokens = spaces.encode(Prompt("p", "Facts.", question="Why?", continuation="So."))
    assert pieces(tokens.context) == ["<s>", "▁Facts", "."]
    assert pieces(tokens.question) == ["Why", "?"]
    assert pieces(tokens.continuation) == ["So", "."]


def test_a_space_that_somebody_wrote(spaces):
    tokens = spaces.encode(Prompt("p", "Facts.", question=" Why?"))
    assert pieces(tokens.context) == ["<s>", "▁Facts", "."] and pieces(tokens.question) == ["▁Why", "?"]


def test_a_token_over_the_boundary_is_held_out(spaces):
    """No part may hold characters of a later one: policies would see the question."""
    tokens = spaces.encode(Prompt("p", "Facts. ", question="Why?"))
    assert pieces(tokens.context) == ["<s>", "▁Facts", "."] and pieces(tokens.question) == ["▁Why", "?"]
    tokens = spaces.encode(Prompt("p", "Fac", question="ts."))
    assert pieces(tokens.context) == ["<s>"] and pieces(tokens.question) == ["▁Facts", "."]


def test_text_after_token_ids(spaces):
    tokens = spaces.encode(Prompt("p", token_ids=[3, 4], question=" Why?", continuation=[9]))
    assert tokens.context.tolist() == [3, 4] and pieces(tokens.question) == ["▁Why", "?"] and tokens.continuation.tolist() == [9]


@pytest.fixture
def chat(tmp_path):
    """`chat(message)`: an Encoder over bytes whose template writes the user's message as that expression of Jinja."""

    def make(message="{{ m['content'] }}", template=None):
        tokenizer = transformers.ByT5Tokenizer()
        tokenizer.chat_template = template or TEMPLATE.replace("MESSAGE", message)
        tokenizer.save_pretrained(tmp_path)
        return Encoder(str(tmp_path), 384, True, None)

    return make


def as_text(ids) -> str:
    return bytes(i - 3 for i in ids.tolist()).decode()


def test_templates_that_strip_white_space(chat):
    """Llama 3's template does; the end of the context is then where the prompt's own text ends."""
    tokens = chat("{{ m['content'] | trim }}").encode(Prompt("p", "\n Facts.\n"))
    assert as_text(tokens.context) == "<user>Facts.</user><bot>"
    tokens = chat("{{ m['content'] | trim }}").encode(Prompt("p", "\n Facts.\n", question="Why?\n"))
    assert as_text(tokens.context) == "<user>Facts.\n" and as_text(tokens.question) == "Why?</user><bot>"


BAD = {
    "dropped": ("-", "0 times"),
    "repeated": ("{{ m['content'] }}{{ m['content'] }}", "2 times"),
    "upper case": ("{{ m['content'] | upper }}", "0 times"),
    "replaced": ("{{ m['content'] | replace('Facts', 'Lies') }}", "changes the text of prompt p"),
    "cut": ("{{ m['content'][:12] }}", "changes the text of prompt p"),
    "another for long texts": ("{% if m['content'] | length > 9 %}!{% endif %}{{ m['content'] }}", "changes the text of prompt p"),
    "raises": ("{{ raise_exception('no user\\nhere') }}", "its chat template cannot be filled in: TemplateError: no user"),
    "undefined": ("{{ m.content.a.b }}", "its chat template cannot be filled in: UndefinedError"),
    "divides": ("{{ 1 / 0 }}", "its chat template cannot be filled in: ZeroDivisionError"),
    "too long for any memory": (
        "{{ 'x' * 10 ** 15 }}",
        "its chat template cannot be filled in: it makes more text than memory holds",
    ),
    "no template": ("{% for %}", "its chat template cannot be filled in: TemplateSyntaxError"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("question", [None, " And why?"])
def test_templates_that_are_refused(chat, what, question):
    message, reason = BAD[what]
    with pytest.raises(InputError, match=reason):
        chat(message).encode(Prompt("p", "Facts and so on.", question=question))


def test_a_damaged_tokenizer(chat, tmp_path):
    encoder = chat()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": 3}))
    with pytest.raises(InputError, match="its tokenizer cannot be loaded: "):
        encoder.encode(Prompt("p", "x"))
