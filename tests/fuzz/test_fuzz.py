"""A small part of `python -m tests.fuzz`, shrunk by hypothesis where it finds something."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import fuzz
from tests.fuzz.inputs import Inputs
from tests.fuzz.mutations import KINDS, Edit
from tests.fuzz.targets import TARGETS

EDITS = st.lists(
    st.builds(Edit, st.sampled_from(KINDS), st.floats(0, 0.999), st.integers(0, 2**16 - 1)), min_size=1, max_size=4
)
# A whole load takes a hundred times what the others take.
EXAMPLES = {"images": 150, "metadata": 200, "weights": 60, "checkpoint": 8}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> dict[str, tuple[Path, Inputs]]:
    made = {}
    for target in TARGETS:
        if target == "weights" and importlib.util.find_spec("torch") is None:
            continue
        folder = tmp_path_factory.mktemp(target)
        made[target] = folder, Inputs(target, folder)
    return made


# Orbax leaves coroutines unfinished where an array cannot be read, and each complains when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_refused_in_words_or_does_none(target, scratch):
    if target not in scratch:
        pytest.skip("torch is not installed; it writes the files that are damaged here")
    folder, inputs = scratch[target]

    @settings(max_examples=EXAMPLES[target], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 30), st.integers(0, 30), EDITS)
    def attempt(base: int, other: int, edits: list[Edit]) -> None:
        TARGETS[target].take(inputs.damaged(base, other, edits), folder)

    attempt()


@pytest.mark.parametrize("target", TARGETS)
def test_undamaged_content_is_taken(target, scratch):
    if target not in scratch:
        pytest.skip("torch is not installed; it writes the files that are damaged here")
    folder, inputs = scratch[target]
    assert all(TARGETS[target].take(content, folder) for content in inputs.seeds)


def test_inputs_are_a_function_of_their_number(scratch):
    _, inputs = scratch["images"]
    assert [inputs.numbered(1, i) for i in range(5)] == [inputs.numbered(1, i) for i in range(5)]
    assert inputs.numbered(1, 7) != inputs.numbered(2, 7)


def test_the_long_run_reports_what_ends_its_process_and_goes_on(tmp_path):
    seed, count = 1, 8
    inputs = Inputs("self-test", tmp_path)
    behaviours = [(content or b"\0")[0] % 4 for content in (inputs.numbered(seed, i) for i in range(count))]
    assert {0, 1, 2, 3} == set(behaviours)
    verdicts = fuzz("self-test", seed, count, seconds=0.2)
    assert [number for number, _, _ in verdicts] == list(range(count))
    expected = {0: ("s", ""), 1: ("f", "a crash"), 2: ("f", "too long"), 3: ("f", "RuntimeError: let out")}
    for behaviour, (_, kind, text) in zip(behaviours, verdicts, strict=True):
        assert kind == expected[behaviour][0]
        assert expected[behaviour][1] in text
