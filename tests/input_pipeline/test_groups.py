"""Unions of groups, against what their definition says."""

from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.groups import joined


def by_definition(groups: list[list[int]]) -> list[list[int]]:
    """Sets that share a member are made one until none do."""
    apart = [set(group) for group in groups if len(group) > 1]
    unions: list[set[int]] = []
    while apart:
        union = apart.pop()
        while touching := [other for other in apart if other & union]:
            union.update(*touching)
            apart = [other for other in apart if other not in touching]
        unions.append(union)
    return sorted(sorted(union) for union in unions)


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True), max_size=12))
def test_unions_are_sorted_disjoint_and_all_that_is_connected(groups):
    assert joined(groups) == by_definition(groups)


def test_of_names_too_and_none_alone():
    assert joined([("b", "a"), ("c",), ("e", "d"), ("a", "z")]) == [["a", "b", "z"], ["d", "e"]]


def test_a_long_chain_is_one():
    assert joined((number, number + 1) for number in range(10_000)) == [list(range(10_001))]
