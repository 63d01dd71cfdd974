"""Damage to a sound file, as a list of small edits: what hypothesis shrinks and what the long run draws by number."""

import dataclasses
import json
import random
from typing import Any

KINDS = ("flip", "byte", "cut", "drop", "repeat", "splice", "number", "digits")
# Lengths, counts and offsets at which readers break: around powers of two, and far beyond any file.
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
# What JSON may hold where another value was meant; text, because 1e999 and NaN have no other form.
WORDS = (b"-1", b"1e999", b"NaN", b"9" * 30, b"null", b"[]", b"{}", b'""', b"true", b"0.5", rb'"\u001b[31m"', b"[[1]]")
WORDS = (
    *WORDS,
    b"0",
    b"1",
    b"4097",
    b"1e-300",
    b"65536",
    b'"relu"',
    b'["a", "a"]',
    b'{"a": 1}',
    b"[" * 90 + b"]" * 90,
)


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit. place: where, as a share of the content, 0 <= place < 1. value: what, read as `kind` needs it."""

    kind: str
    place: float
    value: int


def random_edits(generator: random.Random) -> list[Edit]:
    """One to six edits; half of them near the beginning, where formats keep what readers trust."""
    edits = []
    for _ in range(generator.choice((1, 1, 2, 3, 6))):
        place = generator.random() ** generator.choice((1, 1, 4))
        edits.append(Edit(generator.choice(KINDS), min(place, 0.999999), generator.randrange(2**16)))
    return edits


def mutate(content: bytes, edits: list[Edit], other: bytes) -> bytes:
    """`content` after the edits; 'splice' takes from `other`, another sound file."""
    for edit in edits:
        content = _apply(bytearray(content), edit, other)
    return content


def _apply(content: bytearray, edit: Edit, other: bytes) -> bytes:
    at, value = int(edit.place * len(content)), edit.value
    if not content:
        return bytes(other[:value])
    if edit.kind == "flip":
        content[at] ^= 1 << value % 8
    elif edit.kind == "byte":
        content[at] = value % 256
    elif edit.kind == "cut":
        del content[at:]
    elif edit.kind == "drop":
        del content[at : at + 1 + value % 64]
    elif edit.kind == "repeat":
        content[at:at] = content[at : at + 1 + value % 256] * (1 + value % 7)
    elif edit.kind == "splice":
        start = value * len(other) >> 16
        content[at : at + value % 512] = other[start : start + value % 512]
    elif edit.kind == "number":
        number, size = NUMBERS[value % len(NUMBERS)], (1, 2, 4, 8)[value // 64 % 4]
        order = "little" if value // 256 % 2 else "big"
        content[at : at + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
    else:
        _edit_digits(content, at, WORDS[value % len(WORDS)])
    return bytes(content)


def _edit_digits(content: bytearray, at: int, word: bytes) -> None:
    """Put `word` in the place of the first run of digits behind `at`, as text headers (JSON) have them."""
    start = next((i for i in range(at, min(at + 2000, len(content))) if chr(content[i]).isdigit()), None)
    if start is None:
        return
    end = start
    while end < len(content) and chr(content[end]).isdigit():
        end += 1
    content[start:end] = word


def mutate_json(content: bytes, edits: list[Edit]) -> bytes:
    """The JSON `content` with a value replaced, left out or under another name, once an edit; still JSON."""
    tree = json.loads(content)
    for edit in edits:
        places = list(_places(tree))
        if not places:
            break
        parent, key = places[int(edit.place * len(places))]
        if edit.value % 8 == 0:
            del parent[key]
        elif edit.value % 8 == 1 and isinstance(parent, dict):
            parent[f"{key}\n\x1b[31m"] = parent.pop(key)
        else:
            parent[key] = json.loads(WORDS[edit.value // 8 % len(WORDS)])
    return json.dumps(tree).encode()


def _places(tree: Any) -> Any:
    """(container, key or index) of every value below `tree`."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
