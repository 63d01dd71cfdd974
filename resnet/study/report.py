"""A run's report: one page with its figures, its mistakes and their provenance, which loads nothing from the internet.

python -m resnet.study.report RUN_DIR [--data=DATA_DIR] [--doctor] [--out=FILE]     -> RUN_DIR/report.html
python -m resnet.study.report RUN1 RUN2 ... --out=FILE                              compares runs
"""

from collections.abc import Callable
from pathlib import Path

from input_pipeline.errors import InputError, printable
from input_pipeline.whole_files import write_whole
from resnet import command

REPORT_FILE = "report.html"


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run's folder (--workdir of train_main.py)")
    parser.add_argument("--out", metavar="FILE", help=f"the page (default for one run: RUN_DIR/{REPORT_FILE})")
    parser.add_argument("--data", metavar="DATA_DIR", default="", help="where the data are, if they have moved")
    parser.add_argument("--doctor", action="store_true", help="check the data however many images there are")
    arguments = parser.parse_args()
    folders = [Path(name) for name in arguments.runs]
    if len(folders) > 1 and not arguments.out:
        raise InputError("several runs need --out=FILE for their page")
    if len(folders) > 1 and (arguments.data or arguments.doctor):
        raise InputError("--data and --doctor apply to one run; omit them")
    path = Path(arguments.out) if arguments.out else None
    place = write(folders, path, data_dir=arguments.data, doctor=arguments.doctor, tell=print)
    print(f"Report: {printable(str(place))}")
    return 0


def write(
    folders: list[Path],
    path: Path | None = None,
    *,
    data_dir: str = "",
    doctor: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page of one run, or of several beside each other, to `path`; its place.

    data_dir: where the one run's data are, '' for where the run had them. doctor: look them over however many. tell: is
    given a line for each set of runs that repeat each other, summed up.
    Raises InputError, and writes nothing, for a folder that is no run or a place that cannot be written.
    """
    # Here, not above: they import bokeh, and a slip in the flags is told at once.
    from resnet.study.run_record import read_run

    runs = [read_run(folder) for folder in folders]
    place = path or folders[0] / REPORT_FILE
    if place.is_dir() or not place.parent.is_dir():
        raise InputError(f"--out={printable(str(place))}: name a file in a folder that exists")
    if len(runs) == 1:
        from resnet.study.report_page import page

        text = page(runs[0], data_dir=data_dir, doctor=doctor)
    else:
        from resnet.study.report_comparison import comparison, run_names
        from resnet.study.report_repeats import repeats, told

        text = comparison(runs)
        for found in repeats(runs, run_names(runs)):
            tell(told(found))
    try:
        write_whole(place, text, errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{printable(str(place))}: cannot be written ({error.strerror})") from error
    return place


if __name__ == "__main__":
    command.run(main)
