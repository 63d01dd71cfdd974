"""Processes that were not given the same say in what they differ, before the run's folder is made."""

import dataclasses
import json
from contextlib import nullcontext

import jax
import pytest

from input_pipeline.errors import InputError
from resnet.train import agreement, code_digests, hosts
from resnet.train.checkpoints import Damaged
from resnet.train.configuration import flatten
from resnet.train.loop import open_data
from resnet.train.transfer import Transfer
from resnet.train.workdir import claimed
from tests.tiny import tiny_config, tiny_data


class Store:
    """JAX' key-value store, where all processes are this one."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        return self.values[key]


@pytest.fixture
def act_as(monkeypatch):
    """Has this process be the one of that number, of two."""
    store = Store()
    monkeypatch.setattr(agreement, "store", lambda: store)
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "barrier", lambda name: None)

    def act(rank: int) -> None:
        monkeypatch.setattr(jax, "process_index", lambda: rank)

    return act


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(configuration, its data) of every process that is well."""
    config = tiny_config(tiny_data(tmp_path_factory.mktemp("agreement"), per_class=2))
    return config, open_data(config)


def test_what_differs_from_process_0_is_named(act_as, given):
    config, source = given
    act_as(0)
    agreement.check_alike(flatten(config), source, None)
    act_as(1)
    # Another path to the same images, and what concerns one process alone.
    same = {"data.dir": "/elsewhere", "data.threads": 3, "run.hang_timeout": 9.0}
    agreement.check_alike(flatten(config) | same, source, None)
    with pytest.raises(
        InputError, match=r"process 1 has a different config.* here: optim\.lr: 0\.05 -> 0\.1\); give all"
    ):
        agreement.check_alike(flatten(config) | {"optim.lr": 0.1}, source, None)
    fewer = {**source.splits, "val": source.splits["val"].take([0])}
    other = dataclasses.replace(source, splits=fewer, fingerprint="other")
    with pytest.raises(InputError, match=r"process 1 has images, .*'val': \d+.* -> .*'val': 1\b"):
        agreement.check_alike(flatten(config), other, None)


def test_other_code_than_process_0s_is_named(act_as, given, monkeypatch):
    """It would compute another gradient, and all take the mean of both."""
    config, source = given
    act_as(0)
    agreement.check_alike(flatten(config), source, None)
    act_as(1)
    name = "resnet/train/losses.py"
    others = tuple(f"{name} 0" if line.startswith(name) else line for line in code_digests.sources())
    monkeypatch.setattr(code_digests, "sources", lambda: others)
    with pytest.raises(InputError, match=rf"process 1 has different code from process 0: {name}; give all"):
        agreement.check_alike(flatten(config), source, None)


def test_what_one_process_does_alone_is_refused_before_anything_is_written(act_as):
    act_as(0)
    probe, recalibrated, plain = (
        Transfer("w", mode, norms, (), (), 1)
        for mode, norms in (("probe", "frozen"), ("finetune", "recalibrate"), ("finetune", "train"))
    )
    for begun in (False, True):
        agreement.check_transfer(plain, begun=begun)
        with pytest.raises(InputError, match="mode='probe' runs in one process"):
            agreement.check_transfer(probe, begun=begun)
    agreement.check_transfer(recalibrated, begun=True)
    with pytest.raises(InputError, match="bn='recalibrate' runs in one process"):
        agreement.check_transfer(recalibrated, begun=False)


def test_a_folder_that_is_not_process_0s_is_found_out(act_as, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "FOLDER_SECONDS", 0.2)
    shared, own = tmp_path / "shared", tmp_path / "own"
    act_as(0)
    with claimed(shared):
        agreement.check_shared(shared)
        # An earlier run of the same name on this host's own disk.
        with claimed(own):
            agreement.check_shared(own)
        agreement.check_shared(shared)
        act_as(1)
        agreement.check_shared(shared)
        for folder in (own, tmp_path / "none"):
            with pytest.raises(InputError, match="process 1 does not see what process 0 writes there"):
                agreement.check_shared(folder)


class Listing:
    """Checkpoints of which an NFS client shows an old list at first."""

    def __init__(self, *lists):
        self.lists = list(lists)

    def latest_step(self):
        return self.lists[0]

    def look_again(self):
        self.lists = self.lists[1:] or self.lists


def test_all_go_on_from_the_step_that_process_0_sees(act_as, monkeypatch):
    monkeypatch.setattr(agreement, "FOLDER_SECONDS", 0.2)
    act_as(0)
    assert agreement.newest_step(Listing(4)) == 4
    act_as(1)
    assert agreement.newest_step(Listing(None, 2, 4)) == 4
    with pytest.raises(InputError, match=r"process 1 does not see .*step 4 -> 2"):
        agreement.newest_step(Listing(None, 2))


class Damages:
    """Checkpoints with what is wrong with theirs, look by look."""

    def __init__(self, *faults):
        self.faults = list(faults)

    def fault(self, step):
        return self.faults[0]

    def look_again(self):
        self.faults = self.faults[1:] or self.faults

    def place(self, step):
        return f"run/checkpoints/{step}"


@pytest.mark.parametrize("own", [(None,), ("it does not exist", None)])
def test_a_checkpoint_that_is_damaged_to_one_is_damaged_to_all(act_as, monkeypatch, own):
    monkeypatch.setattr(agreement, "FOLDER_SECONDS", 0.2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    store = agreement.store()
    for rank, theirs, damaged in ((0, None, False), (0, "it is empty", True), (1, "it is empty", True)):
        store.values[f"{agreement.WHOLE}{1 - rank}"] = json.dumps(theirs)
        act_as(rank)
        with pytest.raises(Damaged, match=f"checkpoints/2: .*process {1 - rank}.*empty") if damaged else nullcontext():
            agreement.check_whole(Damages(*own), 2)
    store.values[f"{agreement.WHOLE}1"] = json.dumps(None)
    act_as(0)
    with pytest.raises(Damaged, match=r"as process 0 sees it .*does not exist"):
        agreement.check_whole(Damages("it does not exist"), 2)
