"""`python -m benchmarks`: the time budget, jobs that fail or hang, and what its table says of them."""

import subprocess
import sys
import time

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import record
from benchmarks.__main__ import Job, Outcome, run_all, summary
from input_pipeline.errors import InputError
from tests.commands import ROOT


def python(what: str, code: str, seconds: float = 0.1) -> Job:
    return Job(what, (sys.executable, "-c", code), seconds, {"GREETING": "good day"})


def test_a_job_that_fails_leaves_the_others_their_turn(tmp_path):
    mark = tmp_path / "mark"
    todo = [
        python("fails", "raise SystemExit(3)"),
        python("works", f"import os; open({str(mark)!r}, 'w').write(os.environ['GREETING'])"),
    ]
    outcomes = run_all(todo, 60)
    assert [(outcome.reason, outcome.failed) for outcome in outcomes] == [
        ("failed with exit code 3", True),
        ("", False),
    ]
    assert mark.read_text() == "good day"


def test_a_job_over_time_is_stopped_with_all_that_it_started_and_the_next_not_begun(tmp_path):
    """The child of the job writes its time for as long as it lives."""
    pulse = tmp_path / "pulse"
    beat = f"import time\nwhile True:\n open({str(pulse)!r}, 'w').write(str(time.time()))\n time.sleep(0.05)"
    hangs = python("hangs", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {beat!r}])")
    start = time.monotonic()
    outcomes = run_all([hangs, python("late", "raise SystemExit(3)", seconds=30)], 2.0)
    assert time.monotonic() - start < 60
    assert outcomes[0].reason.startswith("stopped after 2 s")
    assert outcomes[1].reason == "not run: needs about 30 s, 0 s were left"
    assert not any(outcome.failed for outcome in outcomes)
    last = pulse.read_text()
    time.sleep(0.3)
    assert pulse.read_text() == last


def test_the_table_names_what_was_not_measured_now(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "read_all", lambda: [])
    table = summary([Outcome(python("feeds", ""), "not run: too long"), Outcome(python("step", ""))])
    assert "| feeds " in table
    assert "not run: too long" in table
    assert "| step " not in table


def test_the_command_runs_its_jobs_and_ends_with_what_they_came_to(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--seconds=60", "--data=photographs"])
    monkeypatch.setattr(benchmarks, "jobs", lambda data: [python(data, "print('measured')")])
    assert benchmarks.main() == 0
    shown = capfd.readouterr().out
    assert "[1/1] photographs: about 0 s, 60 s left" in shown
    assert "measured" in shown
    assert "not measured yet" in shown
    monkeypatch.setattr(benchmarks, "jobs", lambda data: [python("fails", "raise SystemExit(3)")])
    assert benchmarks.main() == 1


def test_the_jobs_are_benchmarks_that_take_their_flags():
    """As many seconds as 15 minutes have, and commands that the documentation's checker finds nothing wrong with."""
    from docs.builder import commands

    todo = benchmarks.jobs("DIR")
    assert sum(job.seconds for job in todo if "GPU" not in job.what) <= 900
    for job in todo:
        (shown,) = commands.commands(f"```\npython {' '.join(job.words[1:])}\n```\n")
        assert not commands.faults(shown)


def test_one_alone_gets_its_own_flags():
    words = [sys.executable, "-m", "benchmarks", "plan", "--check", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout[:2]) == (0, "[{")
    with pytest.raises(InputError, match=r"stpe: no benchmark; those are .*, step, "):
        benchmarks.alone("stpe", [])
