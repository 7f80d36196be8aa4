"""Small tokenizers of each family, trained on packaged text, with the families' published patterns."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from mqc.data import code, text
from mqc.runtime.tokenizer import CONFIG, TOKENIZER

CONTROL = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
#: Of DeepSeek's earlier models; `\s+$` alone would look through a run of spaces from each of them.
DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]
BLOOM = [r" ?[^(\s|[.,!?…。，、।۔،])]+"]
POSSESSIVE = [
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{2,}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++(?=\S)|(?i:ab|c)"
]


def _split(
    *patterns: str, behavior: str = "isolated", invert: bool = False
) -> list[pre_tokenizers.PreTokenizer]:
    return [
        *(pre_tokenizers.Split(Regex(pattern), behavior, invert) for pattern in patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


BYTE_LEVEL: dict[str, Callable[[], list[pre_tokenizers.PreTokenizer]]] = {
    "gpt2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "prefix space": lambda: [pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=True)],
    "llama3": lambda: _split(LLAMA3),
    "qwen": lambda: _split(QWEN),
    "gpt4o": lambda: _split(GPT4O, behavior="removed", invert=True),
    "deepseek": lambda: _split(*DEEPSEEK),
    "deepseek coder": lambda: _split(*DEEPSEEK_CODER),
    "bloom": lambda: _split(*BLOOM, behavior="merged_with_previous"),
    "punctuation": lambda: [
        pre_tokenizers.Punctuation("contiguous"),
        *_split(r"\d\d\d", behavior="merged_with_next"),
    ],
    "possessive": lambda: _split(*POSSESSIVE, behavior="contiguous"),
}
_NORMALIZERS = {"qwen": normalizers.NFC(), "punctuation": normalizers.NFKC(), "bloom": normalizers.NFD()}


def corpus() -> list[str]:
    """Text, code, and what long runs need."""
    runs = [character * 64 for character in (" ", "\n", "a", "A", "=", "\u0301")]
    return [*text("calibration")[:60_000].splitlines(), code("calibration")[:30_000], *runs]


def byte_level(name: str) -> RawTokenizer:
    raw = RawTokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name in _NORMALIZERS:
        raw.normalizer = _NORMALIZERS[name]
    raw.pre_tokenizer = pre_tokenizers.Sequence(BYTE_LEVEL[name]())
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=["<|end|>", *CONTROL], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    raw.add_tokens(
        ["cat", AddedToken("Dog é", normalized=False, lstrip=True), AddedToken("<tool>", rstrip=True)]
    )
    return raw


def sentence_piece(name: str) -> RawTokenizer:
    """With byte fallback, except of one that has no tokens for most characters."""
    bare = name.startswith("unknown")
    raw = RawTokenizer(models.BPE(unk_token="<unk>", byte_fallback=not bare, fuse_unk=name != "unknown"))
    words = decoders.Replace("▁", " ")
    raw.decoder = decoders.Sequence(
        [words, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if name == "llama2" or bare:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if name == "gemma":
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        raw.decoder = decoders.Sequence([words, decoders.ByteFallback(), decoders.Fuse()])
    if name == "mistral":
        raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    if name == "metaspace":
        raw.normalizer = normalizers.NFKC()
        raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=True)
    byte_tokens = [] if bare else [f"<0x{i:02X}>" for i in range(256)]
    special = ["<unk>", "<s>", "</s>", *CONTROL, *byte_tokens]
    raw.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, limit_alphabet=80),
    )
    made = json.loads(raw.to_str())
    # Bytes are tokens of the model, as SentencePiece has them, and no added ones.
    made["added_tokens"] = [t for t in made["added_tokens"] if not t["content"].startswith("<0x")]
    raw = RawTokenizer.from_str(json.dumps(made))
    raw.add_tokens(
        ["cat", AddedToken("\n\n", normalized=False), AddedToken("<pad>", rstrip=True, lstrip=True)]
    )
    return raw


SENTENCE_PIECE = ("llama2", "gemma", "mistral", "metaspace", "unknown", "unknown fused")
FAMILIES = (*BYTE_LEVEL, *SENTENCE_PIECE)


@cache
def files(name: str) -> dict[str, str]:
    """Files of a family's tokenizer."""
    raw = byte_level(name) if name in BYTE_LEVEL else sentence_piece(name)
    first, last = ("<|end|>", "<|end|>") if name in BYTE_LEVEL else ("<s>", "</s>")
    start = [] if name in BYTE_LEVEL else [raw.token_to_id("<s>")]
    config = {"bos_token": first, "eos_token": last, "start": start}
    return {TOKENIZER: raw.to_str(), CONFIG: json.dumps(config)}
