"""How the scaling benchmark reads compiled programs and profiles."""

from types import SimpleNamespace

import pytest

from benchmarks.scaling import Collective, collectives, covered, timelines

PROGRAM = """
  %all-reduce.1 = f32[27,32]{1,0} all-reduce(%dot.18), channel_id=1, metadata={op_name="jit(f)/conv1/dot" stack=1}
  %all-reduce.2 = (f32[32]{0}, bf16[2,3]{1,0}, f32[]) all-reduce(%a, %b, %c), metadata={op_name="jit(f)/bn1"}
  %ar = f32[8]{0} all-reduce-start(f32[8]{0} %p), channel_id=3
  %ad = f32[8]{0} all-reduce-done(f32[8]{0} %ar)
  %ag = (f32[4,2]{1,0}, f32[4,16]{1,0}) all-gather-start(f32[4,2]{1,0} %p), dimensions={1}
  %plain = f32[8]{0} add(%all-reduce.1, %x), metadata={op_name="all-reduce(me)"}
"""


def test_what_crosses_devices_is_read_from_a_compiled_program():
    assert collectives(PROGRAM) == [
        Collective("all-reduce", ((27, 32),), 3456, "jit(f)/conv1/dot"),
        Collective("all-reduce", ((32,), (2, 3), ()), 144, "jit(f)/bn1"),
        Collective("all-reduce", ((8,),), 32, ""),
        Collective("all-gather", ((4, 16),), 256, ""),
    ]


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2), (5, 6)], 3), ([(0, 10), (2, 4), (3, 12)], 12), ([(5, 6), (0, 2), (1, 5)], 6)],
)
def test_time_that_events_cover_counts_once(intervals, length):
    assert covered(intervals) == length


def plane(name: str, *lines: str) -> SimpleNamespace:
    event = SimpleNamespace(name="work", start_ns=0.0, duration_ns=1.0)
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=[event]) for line in lines])


@pytest.mark.parametrize(
    ("of", "found"),
    [
        (plane("/host:CPU", "python", "tf_XLAEigen/1", "tf_XLAEigen/2", "tf_XLAPjRtCpuClient/3"), [1, 1]),
        (plane("/device:GPU:0", "Stream #1(Kernel)", "Stream #2(NCCL)", "XLA Ops", "XLA Modules"), [2]),
        (plane("/device:TPU:0", "XLA Ops", "XLA Modules", "Steps"), [1]),
        (plane("/host:metadata"), []),
    ],
)
def test_a_devices_work_is_read_once_from_a_profile(of, found):
    assert [len(events) for events in timelines(of)] == found
