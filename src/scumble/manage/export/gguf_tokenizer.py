"""A tokenizer in GGUF's words: tokens and their types, merges, the pre-tokenizer's name, special tokens.

llama.cpp has the rules that cut a text before the merges built in, by name. The name is found as llama.cpp's
own converter finds it: the tokens of a fixed text are hashed, and the hash is looked up. Where it is not
known the tokenizer is refused, unless the user names the rules. Knows tokenizers, not models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from scumble.errors import ConfigError, NotSupportedError, shown

# The text whose tokens llama.cpp's converter hashes (MIT licence); it must stay byte for byte what it is.
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multiple emojis"
    " concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3"
    " \u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601"
    " ?\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e ------======="
    " \u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438"
    " ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it,"
    " 'D you like some tea? We'Ve a'lL"
)
# sha256 of the list of tokens -> the name of the rules, for the architectures written here.
PRE = {
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
}
# What `--pre` may name besides: the rules for byte-level BPE that llama.cpp has.
RULES = frozenset(PRE.values()) | frozenset(
    [
        "bailingmoe",
        "bloom",
        "chameleon",
        "chatglm-bpe",
        "codeshell",
        "command-r",
        "dbrx",
        "deepseek-coder",
        "deepseek-llm",
        "deepseek-v3",
        "default",
        "exaone",
        "exaone4",
        "falcon",
        "falcon3",
        "gpt-4o",
        "gpt3-finnish",
        "hunyuan",
        "jais",
        "kimi-k2",
        "llama-v3",
        "llama3",
        "llama4",
        "megrez",
        "minerva-7b",
        "mpt",
        "olmo",
        "pixtral",
        "poro-chat",
        "refact",
        "seed-coder",
        "stablelm2",
        "starcoder",
        "superbpe",
        "trillion",
        "viking",
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer.

    Attributes:
        pre: the name of llama.cpp's rules that cut a text before the merges.
        tokens: by id, as many as the model's embedding has rows.
        types: of each token: 1 normal, 3 control, 4 user-defined, 5 unused.
        merges: "left right", the first first.
        special: ids of bos, eos, unk and pad, those there are.
        adds: whether a begin and an end token are added to a text.
        template: the chat template, several by name, or None.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    adds: dict[str, bool]
    template: str | list[dict[str, str]] | None

    def write(self, writer: Any) -> None:
        """Write it into gguf's writer."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for kind, number in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(number)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.template:
            writer.add_chat_template(self.template)


def probe_hash(tokenizer: Any) -> str:
    """The hash by which a tokenizer's rules are known: sha256 of the list of the probe's tokens, as text."""
    return hashlib.sha256(str(list(tokenizer.encode(PROBE))).encode()).hexdigest()


def vocabulary_of(tokenizer: Any | None, size: int, where: str, *, pre: str | None = None) -> Vocabulary:
    """Read a tokenizer.

    Args:
        tokenizer: of transformers.
        size: rows of the model's embedding.
        where: what an error calls the model.
        pre: the name of the rules, where the hash should not decide.

    Raises:
        NotSupportedError: there is no tokenizer, it is no byte-level BPE, or its rules have no known name.
    """
    if tokenizer is None:
        raise NotSupportedError(
            f"{where} has no tokenizer, and a GGUF file holds one", "copy its tokenizer files there"
        )
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise NotSupportedError(
            f"{where} has a tokenizer that is no fast one ({type(tokenizer).__name__})",
            "save it as tokenizer.json",
        )
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = (
            "a SentencePiece tokenizer" if model.get("byte_fallback") else f"a {model.get('type')} tokenizer"
        )
        raise NotSupportedError(
            f"{where} has {kind}, and only byte-level BPE is written to GGUF here",
            "llama.cpp's own converter, convert_hf_to_gguf.py, writes it; give it the merged model",
        )
    if pre is not None and pre not in RULES:
        near = difflib.get_close_matches(pre, RULES, n=1, cutoff=0.5)
        raise ConfigError(
            f"--pre is {shown(pre)}, and llama.cpp has no rules of that name",
            f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(RULES))}",
        )
    rules = pre or PRE.get(probe_hash(tokenizer))
    if rules is None:
        raise NotSupportedError(
            f"{where} has a tokenizer whose rules have no known name in llama.cpp (hash {probe_hash(tokenizer)[:12]})",
            "name them where you know them to be the same: --pre llama-bpe, qwen2, gpt-2, smollm, ...",
        )
    tokens, types = _tokens(tokenizer, size, where)
    return Vocabulary(
        rules,
        tokens,
        types,
        _merges(model["merges"]),
        _special(tokenizer),
        _adds(tokenizer),
        _template(tokenizer),
    )


def _tokens(tokenizer: Any, size: int, where: str) -> tuple[list[str], list[int]]:
    import gguf

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= size:
        raise NotSupportedError(
            f"{where} has a token of number {max(by_id)}, and an embedding of {size} rows",
            "resize the embedding to the tokenizer before exporting",
        )
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(size):
        kind = gguf.TokenType.NORMAL
        if number not in by_id:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            special = added[number].special or _looks_special(by_id[number])
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(int(kind))
    return tokens, types


def _looks_special(token: str) -> bool:
    """Tokens that some models forget to mark: llama.cpp takes them for control tokens too."""
    return token.startswith("<|") and token.endswith("|>")


def _merges(merges: list[Any]) -> list[str]:
    """Merges as one text each; a space within a token, which would end it, is written as bytes are: Ġ."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [" ".join(part.replace(" ", chr(ord(" ") + 256)) for part in pair) for pair in pairs]


def _special(tokenizer: Any) -> dict[str, int]:
    numbers = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "unk", "pad")}
    return {kind: int(number) for kind, number in numbers.items() if number is not None}


def _adds(tokenizer: Any) -> dict[str, bool]:
    """Whether a text gets a begin and an end token: found by trying, not by reading settings."""
    tried, bare = list(tokenizer.encode("a")), list(tokenizer.encode("a", add_special_tokens=False))
    begins = len(tried) > len(bare) and tried[0] == tokenizer.bos_token_id
    ends = len(tried) > len(bare) and tried[-1] == tokenizer.eos_token_id
    return {"bos": begins, "eos": ends}


def _template(tokenizer: Any) -> str | list[dict[str, str]] | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template
