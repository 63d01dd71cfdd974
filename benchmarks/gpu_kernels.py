"""Which kernels a compiled JAX program runs on a GPU, and for how long: a trace of a few calls, summed by operation."""

import collections
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The environment's name for a folder in which programs and traces are kept.
KEEP = "BENCHMARK_KEEP"


def kernels_of(call: Callable[[], Any], finish: Callable[[], Any], calls: int, keep: str = "") -> dict[str, Any]:
    """Trace `calls` calls: milliseconds a call from first to last kernel, in kernels, and of each operation.

    keep: where the whole trace goes (Chrome's format, gzip); '' for nowhere. Without a GPU there are no rows.
    """
    import jax

    finish()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
            finish()
        file = next(Path(folder).rglob("*.trace.json.gz"), None)
        content = file.read_bytes() if file else gzip.compress(b'{"traceEvents": []}')
    if keep:
        Path(keep).write_bytes(content)
    return summary(json.loads(gzip.decompress(content))["traceEvents"], calls)


def summary(events: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    """Of a trace's events, a call: {'span_ms', 'busy_ms', 'launches', 'rows': [{'name', 'kernel', 'count', 'ms'}]}."""
    devices = {
        event["pid"]
        for event in events
        if event.get("name") == "process_name" and "GPU" in str(event.get("args", {}).get("name", ""))
    }
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and str(event.get("args", {}).get("name", "")).startswith("Stream")
    }
    kernels = [
        event
        for event in events
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in threads and event["pid"] in devices
    ]
    if not kernels:
        return {"span_ms": 0.0, "busy_ms": 0.0, "launches": 0.0, "rows": []}
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in kernels:
        key = (str(event.get("args", {}).get("hlo_op", "")), event["name"])
        times[key] += event["dur"]
        counts[key] += 1
    begun, ended = min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels)
    rows = [
        {"name": key[0], "kernel": key[1][:160], "count": counts[key] / calls, "ms": time / 1e3 / calls}
        for key, time in times.most_common()
    ]
    return {
        "span_ms": (ended - begun) / 1e3 / calls,
        "busy_ms": sum(times.values()) / 1e3 / calls,
        "launches": len(kernels) / calls,
        "rows": rows,
    }
