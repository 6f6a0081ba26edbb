"""What must not be seen in a record: secrets that people put into command lines and titles.

Masking goes by the name of an option or variable, and by the look of a value. It errs towards masking too much: a
token that is shown is a leak, a number that is hidden is a nuisance. Values are replaced by `***`, names stay. The
text may be hostile, so every pattern works in linear time (possessive quantifiers, and no start inside a run).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

MASK = "***"

# Words of a name, alone or as neighbours, that make its value a secret. `tokens` and `tokenizer` are other words.
_TELLING = (
    "apikey api-key accesskey secretkey privatekey private-key key token authtoken secret secrets password passwd"
    " passphrase pwd pass credential credentials bearer auth authorization cookie jwt"
)
_SECRET_WORDS = frozenset(_TELLING.split())
# Neighbours that hold such a word and are no secret.
_HARMLESS = (
    "token-id token-ids token-step token-len token-length token-num token-count token-limit token-budget token-ratio"
    " token-usage num-token max-token min-token pad-token eos-token bos-token stop-token mask-token special-token"
    " image-token video-token audio-token pass-config key-file ssl-key"
)
_HARMLESS_PAIRS = frozenset(_HARMLESS.split())
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# NAME=value, --name=value, "name": "value", name: value (a header): the name and what joins it to its value.
_NAMED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)[\"']?\s*+[=:]\s*+")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*+\"?|'(?:[^'\\]|\\.)*+'?|[^\s,;&}\"']++")
# --name value value, within one text such as a shell's.
_OPTION = re.compile(r"(?<![\w-])(?P<name>--?[A-Za-z][\w.-]*+)(?=\s)(?P<values>(?:\s++(?![-;&|])[^\s;&|]++)++)")
_SCHEME = re.compile(r"\b(?P<scheme>(?:Bearer|Basic|Token)\s++)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^\s/]*@")
# What the big issuers' tokens look like, wherever they stand.
_LOOKS_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}|\bsk[-_][A-Za-z0-9_-]{8,}|\bpk-[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{12,}|\bxox[a-z]-[A-Za-z0-9-]{8,}"
    r"|\bA(?:KIA|SIA)[0-9A-Z]{12,}|AIza[0-9A-Za-z_-]{20,}|nvapi-[A-Za-z0-9_-]{12,}|\bya29\.[A-Za-z0-9_-]{12,}"
    r"|(?<![\w-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_.-]{8,}"
)


def is_secret_name(name: str) -> bool:
    """True if an option, variable or key of this name holds a secret: `--api-key`, `HF_TOKEN`, `dbPassword`."""
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = [f"{first}-{second}" for first, second in pairwise(words)]
    for index, pair in enumerate(pairs):
        if pair in _HARMLESS_PAIRS:
            words[index] = words[index + 1] = ""
    # argparse takes a beginning of an option for the whole: --api-k.
    return not _SECRET_WORDS.isdisjoint(words + pairs) or "-".join(words).startswith("api-k")


def mask_text(text: str) -> str:
    """`text` with every secret in it replaced, whatever stands around it: shell lines, URLs, JSON, headers, titles."""
    text = _USERINFO.sub(f"{MASK}@", text)
    text = _SCHEME.sub(lambda found: found["scheme"] + MASK, text)
    text = _mask_named(text)
    text = _OPTION.sub(lambda found: f"{found['name']} {MASK}" if is_secret_name(found["name"]) else found[0], text)
    return _LOOKS_SECRET.sub(MASK, text)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line with its secrets replaced; the number of arguments stays.

    All the values after a secret option go, up to the next option, since `--api-key` of vLLM takes several.
    """
    masked = []
    hiding = False
    for argument in arguments:
        option = argument.startswith("-") and len(argument) > 1 and not argument[1].isdigit()
        if option:
            hiding = "=" not in argument and " " not in argument and is_secret_name(argument)
        masked.append(MASK if hiding and not option else mask_text(argument))
    return masked


def _mask_named(text: str) -> str:
    """Mask the values of secret names. A value of another name is looked through too: `--url=http://h/?token=x`."""
    pieces = []
    done = position = 0
    while named := _NAMED.search(text, position):
        position = named.end()
        if is_secret_name(named["name"]) and (value := _VALUE.match(text, position)):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            pieces += [text[done:position], quote, MASK, quote]
            done = position = value.end()
    return "".join(pieces) + text[done:]
