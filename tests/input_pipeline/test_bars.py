import pytest

from input_pipeline.bars import Bar


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
