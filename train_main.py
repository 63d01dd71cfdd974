"""Train a network: flags in, resnet.train.loop called, nothing else.

python train_main.py --config=configs/flowers.py --workdir=runs/flowers [--config.optim.lr=0.1 ...]
"""

import difflib
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.default import get_config as default_config
from input_pipeline.errors import InputError, printable
from resnet import command
from resnet.train.configuration import flatten, validate
from resnet.train.workdir import check_workdir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "The recipe, such as configs/demo.py; configs/default.py explains every key."
)
flags.DEFINE_string("workdir", None, "The run's folder; the same command on the same folder goes on where it stopped.")


def main() -> int:
    parse(sys.argv)
    config, workdir = FLAGS.config, Path(FLAGS.workdir)
    # `train` checks both again; here they come before an import that takes seconds, so a slip is told at once.
    validate(config)
    check_workdir(workdir, dict(flatten(config)))
    from resnet.train.loop import train

    code = train(config, workdir)
    if code == 0:
        write_report(workdir)
    return code


def write_report(workdir: Path) -> None:
    """Write the finished run's report and name it. Whatever fails in it, the run stays what it is: done."""
    try:
        # Here, not above: it imports what draws pages, which a run needs at its end alone.
        from resnet.study.report import write

        print(f"Report    {printable(str(write([workdir])))}")
    except Exception as error:  # Any: see above.
        print(f"The run is done, but its report could not be written ({first_line(error)}).", file=sys.stderr)


def parse(arguments: list[str]) -> None:
    """Read the flags. Raises InputError for an unknown flag or key, a bad value, a missing flag or a broken recipe."""
    if any(argument in ("-h", "--help", "-help") for argument in arguments[1:]):
        print(__doc__)
        print(FLAGS.main_module_help())
        print("\nAny key of the configuration can be set: --config.optim.lr=0.1. configs/default.py explains them all.")
        sys.exit(0)
    check_keys(arguments)
    recipe = recipe_file(arguments)
    # FILE.py:WORD hands WORD to the recipe's get_config.
    if recipe and not Path(recipe).is_file() and not Path(recipe.rpartition(":")[0]).is_file():
        raise InputError(
            f"--config={printable(recipe)}: no such file; recipes are Python files such as configs/folder.py"
        )
    try:
        rest = FLAGS(arguments)
    except flags.Error as error:
        raise InputError(f"{first_line(error)}; see --help and configs/default.py") from error
    except Exception as error:  # Any: the recipe is the user's own code.
        raise InputError(
            f"--config={printable(recipe)}: {type(error).__name__} ({first_line(error)}); mend the recipe"
        ) from error
    if recipe and not isinstance(FLAGS["config"].value, ConfigDict):
        raise InputError(f"--config={printable(recipe)}: its get_config() returns no ConfigDict; mend the recipe")
    if len(rest) > 1:
        raise InputError(f"{printable(rest[1])!r} is no flag; flags look like --workdir=PATH and --config.key=value")
    for name in ("config", "workdir"):
        if not FLAGS[name].value:
            raise InputError(f"--{name} is missing; see --help")


def check_keys(arguments: list[str]) -> None:
    """Raise InputError for --config.KEY where there is no such key (config_flags would name but its last part)."""
    known = [key for key, _ in flatten(default_config())]
    for argument in arguments[1:]:
        name = argument.lstrip("-").partition("=")[0]
        key = name.removeprefix("config.")
        if argument.startswith("-") and key != name and key not in known:
            elsewhere = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
            alike = elsewhere or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            hint = f", did you mean --config.{alike[0]}?" if alike else ";"
            raise InputError(f"--{printable(name)}: no such key{hint} configs/default.py lists all")


def recipe_file(arguments: list[str]) -> str:
    """The file that --config=FILE or --config FILE names, '' for none."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0]) if lines else "no reason given"


if __name__ == "__main__":
    command.run(main)
