"""The error for what a user can mend: a file, a key or a value."""


class InputError(ValueError):
    """A fault in what the user gave. Its message is one line that names the file, key or value and says what to do.

    Commands print `error: MESSAGE` on standard error and leave with exit code 2; no traceback.
    """


class MissingPackage(InputError):
    """A package that an image needs to be read is not installed: no verdict on the image."""


def printable(name: str) -> str:
    """`name` with control characters (newlines, terminal escapes) and lone surrogates escaped: safe in a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in name)
