"""Names in commands that are printed to be copied: a shell makes the very same name of them, on one safe line."""

import shlex
from collections.abc import Iterable

_SPECIAL = {"\\": "\\\\", "'": "\\'"}


def shell_word(name: str) -> str:
    """`name` as one word of a command line: as it is, in quotes, or, with what no terminal should get, as bash's $'…'.

    dash takes $'…' from 0.5.13 on, zsh and ksh always have.
    """
    if name.isprintable():
        return shlex.quote(name)
    return f"$'{''.join(map(_escaped, name))}'"


def shell_words(names: Iterable[str]) -> str:
    """A command line of these words."""
    return " ".join(map(shell_word, names))


def _escaped(character: str) -> str:
    if character.isprintable():
        return _SPECIAL.get(character, character)
    # U+DC80 to U+DCFF stand for the bytes of a name that is no UTF-8.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    # Never more than two digits are taken: a letter behind them stays one.
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
