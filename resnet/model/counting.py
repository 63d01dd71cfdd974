"""Parameters, multiply-adds and activations of a network, stage by stage, as Table 1 of He et al. 2015 has them.

    python -m resnet.model.counting --model resnet50 resnet101 [--image_size=224] [--batch_size=1] [--json]
    python -m resnet.model.counting --model=resnet50 --set shortcut=C --set num_classes=101 [--format=latex|csv]
    python -m resnet.model.counting --check                every named network against its published figures

Multiply-adds are those of convolutions and matrix products, products with padding included; biases, norms, activations,
pooling and additions are not counted: the convention of He et al. 2015 ("FLOPs (multiply-adds)"), torchvision and timm.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import jax

from resnet.model import counting_tables
from resnet.model.counts import BYTES, Counts, count
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.model.table_formats import FORMATS, terminal_width
from resnet.model.variants import VARIANTS, Variant, variant

# Flags that say what is counted, and of which --check has its own mind.
NOT_CHECKED = ("set", "image_size", "batch_size", "dtype")
# Field -> another, and the values of that under which something reads it.
READ_IF: dict[str, tuple[str, tuple[str, ...]]] = {
    "norm_groups": ("norm", ("group",)),
    "norm_momentum": ("norm", ("batch",)),
    "ghost_batch_size": ("norm", ("batch",)),
    "norm_epsilon": ("norm", ("batch", "group")),
    "conv_bias": ("norm", ("batch", "group")),
    "shortcut_scale": ("shortcut_transform", ("scale",)),
    "gate_bias": ("shortcut_transform", ("exclusive_gate", "shortcut_gate")),
    "shortcut_dropout": ("shortcut_transform", ("dropout",)),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message}; see --help")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--model", nargs="+", action="extend", metavar="NAME", help="named networks (default: resnet50)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="any field of ResNetSpec"
    )
    parser.add_argument("--image_size", type=int, help="pixels a side (default: the network's own, 224 or 32)")
    parser.add_argument("--batch_size", type=int, help="images the activations are counted for (default: 1)")
    parser.add_argument("--dtype", choices=tuple(BYTES), help="of the activations (default: float32)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the published figures; exit code 1 if one differs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--format", choices=FORMATS, help="of the tables (default: markdown; latex needs the booktabs package)"
    )
    arguments = parser.parse_args()
    if arguments.json and arguments.format:
        raise SpecError(f"--json and --format={arguments.format} are two ways to print; omit one")
    form = "json" if arguments.json else arguments.format or "markdown"
    if arguments.check:
        unread = [f"--{name}" for name in NOT_CHECKED if getattr(arguments, name) not in (None, [])]
        if unread:
            raise SpecError(f"--check applies to networks as named and published; omit {' and '.join(unread)}")
        return check(arguments.model or list(VARIANTS), form)
    for field in ("image_size", "batch_size"):
        if getattr(arguments, field) is not None and getattr(arguments, field) < 1:
            raise SpecError(f"--{field}={getattr(arguments, field)} must be at least 1")
    arguments.batch_size, arguments.dtype = arguments.batch_size or 1, arguments.dtype or "float32"
    counted = {}
    for name in arguments.model or ["resnet50"]:
        named = variant(name)
        counted[name] = count(with_fields(named.spec, arguments.set), arguments.image_size or named.image_size)
    if form == "json":
        print(json.dumps({name: as_json(counts, arguments) for name, counts in counted.items()}, indent=1))
        return 0
    batch = {"batch_size": arguments.batch_size, "dtype": arguments.dtype}
    print(counting_tables.tables(counted, arguments.set, form=form, **batch, width=terminal_width()))
    return 0


def with_fields(spec: ResNetSpec, settings: Iterable[str]) -> ResNetSpec:
    """`spec` with fields set from 'FIELD=VALUE' texts.

    Raises SpecError for a field that is unknown, set twice or read by nothing, and for an unreadable value.
    """
    known = {field.name: field.default for field in dataclasses.fields(ResNetSpec)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise SpecError(f"--set {setting}: takes FIELD=VALUE, FIELD one of {', '.join(known)}")
        if name in changes:
            raise SpecError(f"--set {setting}: {name} is set twice; omit one of the two")
        changes[name] = read_value(setting, text, known[name])
    changed = dataclasses.replace(spec, **changes)
    for name in changes.keys() & READ_IF:
        other, values = READ_IF[name]
        if getattr(changed, other) not in values:
            raise SpecError(f"--set {name}={changes[name]} applies only where {other} is {' or '.join(values)}")
    return changed


def read_value(setting: str, text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`; a tuple is written 3,4,6,3 with or without parentheses."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
        return type(default)(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else f"a value like {default!r}"
        raise SpecError(f"--set {setting}: needs {kind}") from None


def as_json(counts: Counts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything counted, in JSON's types."""
    derived = ("parameters", "statistics", "multiply_adds", "activations", "training_flops")
    return {
        **dataclasses.asdict(counts),
        **{name: getattr(counts, name) for name in derived},
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "activation_bytes": counts.activation_bytes(arguments.batch_size, arguments.dtype),
    }


def check(names: Iterable[str], form: str = "markdown") -> int:
    """Print named networks' counts beside the published; 1 if one differs, which is then named, else 0.

    form: 'json' or one of FORMATS.
    """
    checked: list[tuple[str, Variant, Counts]] = []
    differences: dict[str, list[str]] = {}
    for name in names:
        named = variant(name)
        counts = count(named.spec, named.image_size)
        checked.append((name, named, counts))
        differences[name] = named.differences(counts.parameters, counts.statistics, counts.multiply_adds)
    off = {name: found for name, found in differences.items() if found}
    if form == "json":
        fields = ("parameters", "statistics", "multiply_adds")
        rows = {
            name: {field: getattr(counts, field) for field in fields} | {"differences": differences[name]}
            for name, _, counts in checked
        }
        print(json.dumps({"ok": not off, "models": rows}, indent=1))
    else:
        print(counting_tables.check_table(checked, differences, form, terminal_width()))
        if form == "markdown":
            print(f"\n{len(checked) - len(off)} of {len(checked)} models agree with their published figures")
    for name, found in off.items():
        for difference in found:
            print(f"{name}: {difference}", file=sys.stderr)
    return 1 if off else 0


def run() -> int:
    """Call `main`; what a user can mend becomes one line and exit code 2 (resnet.command does it for other rooms)."""
    # Nothing is computed, so no accelerator is needed: do not take one's memory from a run in progress.
    jax.config.update("jax_platforms", "cpu")
    try:
        return main()
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `command | head`: the reader has seen enough. The interpreter would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(run())
