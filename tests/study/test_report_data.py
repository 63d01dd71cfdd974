"""The pictures of a report come from the run's own data."""

import shutil

from resnet.study.report_page import page
from resnet.study.run_record import read_run
from resnet.train.loop import train
from tests.tiny import tiny_config, tiny_data


def test_the_runs_own_data_are_known_however_they_were_split(tmp_path):
    """So many of each class for training, the others for the test, and copies on one side."""
    data, workdir = tiny_data(tmp_path), tmp_path / "run"
    shutil.rmtree(data / "test")
    config = tiny_config(data)
    config.data.update(per_class=4, keep_copies_together=True, drop_leaks=True)
    assert train(config, workdir) == 0
    whole = page(read_run(workdir))
    assert "are not those of the run" not in whole
    assert "data-cell" in whole
