import pytest

from input_pipeline.bars import Bar, over_batches


@pytest.mark.parametrize(("total", "shown", "lines"), [(1000, True, 2), (1000, False, 0), (499, True, 0)])
def test_where_no_terminal_is_a_line_comes_now_and_then(capsys, total, shown, lines):
    now = [0.0]
    with Bar("checking images", total, shown=shown, clock=lambda: now[0]) as bar:
        now[0] = 100.0
        for _ in range(7):
            bar.update(50)
            now[0] += 10
    told = capsys.readouterr().err.splitlines()
    assert len(told) == lines
    assert told[:1] in ([], ["checking images: 200 of 1,000 done, 5 a second, 02:40 left"])


def test_what_was_done_before_counts_as_done_but_not_as_speed(capsys):
    now = [0.0]
    with Bar("features", 1000, done=600, clock=lambda: now[0]) as bar:
        for _ in range(3):
            bar.update(50)
            now[0] += 50
    assert capsys.readouterr().err == (
        "features: 700 of 1,000 done, 1 a second, 05:00 left\nfeatures: 750 of 1,000 done, 1 a second, 04:10 left\n"
    )


def test_batches_come_through_as_they_are_and_the_last_counts_what_is_left(monkeypatch):
    counted = []
    monkeypatch.setattr(Bar, "update", lambda self, count: counted.append(count))
    assert list(over_batches(iter("abc"), "evaluating test", 20, 8)) == ["a", "b", "c"]
    assert counted == [8, 8, 4]
