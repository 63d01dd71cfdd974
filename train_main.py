"""Train a network: flags in, resnet.train.loop called, nothing else.

python train_main.py --config=configs/flowers.py --workdir=runs/flowers [--config.optim.lr=0.1 ...]
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from configs.default import get_config as default_config
from input_pipeline.errors import printable
from input_pipeline.sources import check_place
from resnet import command, recipe
from resnet.train.configuration import flatten, validate
from resnet.train.workdir import check_workdir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "The recipe, such as configs/demo.py; configs/default.py explains every key."
)
flags.DEFINE_string("coordinator", "", "One of several processes: HOST:PORT of process 0. SLURM and others need none.")
flags.DEFINE_integer("num_processes", 0, "One of several processes: how many there are.")
flags.DEFINE_integer("process_id", -1, "One of several processes: which one this is, from 0.")
flags.DEFINE_string("workdir", None, "The run's folder; the same command on the same folder goes on where it stopped.")


def main() -> int:
    recipe.parse(FLAGS, sys.argv, __doc__ or "", known=(key for key, _ in flatten(default_config())))
    config, workdir = FLAGS.config, Path(FLAGS.workdir)
    # `train` checks both again; here they come before an import that takes seconds, so a slip is told at once.
    validate(config)
    check_workdir(workdir, dict(flatten(config)))
    check_place(config.data.source, config.data.dir)
    from resnet.train import hosts, peers
    from resnet.train.loop import train

    hosts.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    with peers.together():
        code = train(config, workdir)
    # Of several processes none writes it: loading a checkpoint waits for all of them.
    if code == 0 and not hosts.several():
        write_report(workdir)
    return code


def write_report(workdir: Path) -> None:
    """Write the finished run's report and name it. Whatever fails in it, the run stays what it is: done."""
    try:
        # Here, not above: it imports what draws pages, which a run needs at its end alone.
        from resnet.study.report import write

        print(f"Report    {printable(str(write([workdir])))}")
    except Exception as error:  # Any: see above.
        print(f"The run is done, but its report could not be written ({recipe.first_line(error)}).", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
