"""Train a network: parses the flags and calls resnet.train.loop.

python train_main.py --config=configs/flowers.py --workdir=runs/flowers [--config.optim.lr=0.1 ...]
"""

import sys
from pathlib import Path

from absl import flags

from configs.default import get_config as default_config
from input_pipeline import recipe
from input_pipeline.errors import printable
from input_pipeline.sources import check_place
from resnet import command
from resnet.train.configuration import flatten, validate
from resnet.train.unread_keys import let_go
from resnet.train.workdir import check_workdir


def make_flags(arguments: list[str], of_recipe: recipe.Flat) -> flags.FlagValues:
    """The command's flags, in a set of their own. of_recipe: takes up the keys as the recipe has them."""
    values = flags.FlagValues()
    recipe.define(
        values,
        arguments,
        "The recipe, such as configs/demo.py; configs/default.py explains every key.",
        prepare=lambda config: of_recipe.update(flatten(config)),
    )
    flags.DEFINE_string("workdir", None, "The run's folder; the same command resumes it.", flag_values=values)
    flags.DEFINE_bool(
        "new_length", False, "Give an existing run another length: run.epochs, run.steps and run.early_stopping may "
        "differ from those it began with.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator", "", "With several processes: HOST:PORT of process 0. Not needed under SLURM and others.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("num_processes", 0, "With several processes: how many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "With several processes: which one this is, from 0.", flag_values=values)
    return values


def main() -> int:
    of_recipe: recipe.Flat = {}
    values = make_flags(sys.argv, of_recipe)
    recipe.parse(values, sys.argv, __doc__ or "", known=flatten(default_config()))
    given = values.flag_values_dict()
    config, workdir = given["config"], Path(given["workdir"])
    flagged = recipe.keys_given(sys.argv)
    notes = let_go(config, of_recipe, flagged)
    # `train` checks both again; here they come before an import that takes seconds, so a slip is told at once.
    validate(config)
    check_workdir(workdir, flatten(config), new_length=given["new_length"])
    check_place(config.data.source, config.data.dir)
    from resnet.train import hosts, peers
    from resnet.train.loop import train

    hosts.join(given["coordinator"], given["num_processes"], given["process_id"])
    for note in notes:
        hosts.say(note)
    with peers.together():
        code = train(
            config,
            workdir,
            new_length=given["new_length"],
            flagged=flagged,
            afterwards=command.leave_at_once,
        )
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
