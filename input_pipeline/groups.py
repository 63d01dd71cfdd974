"""What belongs together, by way of others too."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar


class Sortable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=Sortable)


def joined(groups: Iterable[Iterable[T]]) -> list[list[T]]:
    """The unions of groups that share a member, directly or by way of others: each sorted, by their least members.

    A member that only ever stands in a group of its own belongs to nothing and is left out.
    """
    parent: dict[T, T] = {}

    def root(member: T) -> T:
        while parent.setdefault(member, member) != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for first, *rest in groups:
        for member in rest:
            parent[root(member)] = root(first)
    unions: dict[T, list[T]] = {}
    for member in sorted(parent):
        unions.setdefault(root(member), []).append(member)
    return list(unions.values())
