"""The error for a network that cannot be built as described."""


class SpecError(ValueError):
    """A value or a combination in a ResNetSpec that makes no sense; its message is one line that says why."""
