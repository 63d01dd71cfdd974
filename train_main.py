"""Train a network: flags in, resnet.train.loop called, nothing else.

    python train_main.py --config=configs/flowers.py --workdir=runs/flowers [--config.optim.lr=0.1 ...]
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from input_pipeline.errors import InputError
from resnet import command

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/demo.py; configs/default.py explains every key.")
flags.DEFINE_string("workdir", None, "The run's folder; the same command on the same folder goes on where it stopped.")


def main() -> int:
    from resnet.train.loop import train

    parse(sys.argv)
    return train(FLAGS.config, Path(FLAGS.workdir))


def parse(arguments: list[str]) -> None:
    """Read the flags. Raises InputError for an unknown flag or key, a bad value, or a missing flag."""
    if any(argument in ("-h", "--help", "-help") for argument in arguments[1:]):
        print(__doc__)
        print(FLAGS.main_module_help())
        print("\nAny key of the configuration can be set: --config.optim.lr=0.1. configs/default.py lists and explains all.")
        sys.exit(0)
    try:
        rest = FLAGS(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        lines = [line for line in str(error).strip().strip('"').splitlines() if line.strip()]
        raise InputError(f"{lines[0] if lines else type(error).__name__}; see --help and configs/default.py") from error
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is no flag; flags look like --workdir=PATH and --config.key=value")
    for name in ("config", "workdir"):
        if not FLAGS[name].value:
            raise InputError(f"--{name} is missing; see --help")


if __name__ == "__main__":
    command.run(main)
