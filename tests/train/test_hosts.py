"""Who the peers of a process are: by flags, and by the variables that SLURM, Open MPI, Cloud TPU and Kubernetes set."""

import collections
import http.server
import os
import sys
import threading
from typing import ClassVar

import jax
import pytest
from jax._src import cloud_tpu_init, clusters

from input_pipeline.errors import InputError
from resnet.train import hosts
from tests import commands
from tests.tiny import tiny_data, tiny_recipe
from tests.train.test_processes import open_mpi, slurm

ORTE = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
NODES = "node[001-002]"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    return tiny_recipe(folder / "recipe.py", tiny_data(folder))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_processes=2",), "go together"),
        (("--coordinator=h:1",), "go together"),
        (("--coordinator=h:1", "--process_id=0"), "go together"),
        (("--coordinator=here", "--num_processes=2", "--process_id=0"), "must be HOST:PORT"),
        (("--coordinator=h:1", "--num_processes=2", "--process_id=2"), "must be below --num_processes=2"),
        (("--num_processes=two",), "--num_processes=two"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_one_line(flags, words, recipe, tmp_path):
    result = commands.run("train_main.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *flags)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("coordinator", "count", "number", "words"),
    [
        ("h:0", 2, 0, "must be HOST:PORT"),
        ("h:65536", 2, 0, "must be HOST:PORT"),
        (":1", 2, 0, "must be HOST:PORT"),
        ("h:²", 2, 0, "must be HOST:PORT"),
        ("h:1", -2, 0, "--num_processes=-2 must be at least 1"),
        ("", -2, -1, "--num_processes=-2 must be at least 1"),
        ("h:1", 2, -2, "--process_id=-2 must be at least 0"),
        ("h:1", 0, 0, "go together"),
        ("", 2, 1, "go together"),
    ],
)
def test_numbers_out_of_range_are_refused(coordinator, count, number, words):
    with pytest.raises(InputError, match=words):
        hosts.peers_of(coordinator, count, number, {})


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, ""),  # A shell inside an allocation is no task.
        (slurm(8, 3, 1), "SLURM"),
        (slurm(1, 0, 1), ""),
        (open_mpi(4, 1), "Open MPI"),
        (open_mpi(1, 0), ""),
        ({"OMPI_COMM_WORLD_SIZE": "four"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "Cloud TPU"),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476", "TPU_WORKER_ID": "1"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:8080", "TPU_WORKER_HOSTNAMES": "a"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),  # A pod of its own.
    ],
)
def test_launchers_are_recognised_by_their_variables(environment, name):
    assert hosts.launcher(environment) == name


def found(monkeypatch, environment: dict[str, str], coordinator: str = "") -> tuple:
    """What JAX and we together make of an environment: (coordinator, count, number, GPUs)."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = hosts.peers_of(coordinator, 0, -1, os.environ)
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    return detect(*(given.get(name) for name in names), given.get("cluster_detection_method"), 0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (slurm(8, 3, 4097, NODES), ("node001:61441", 8, 3, [3])),
        # --gpus-per-task=1: each task sees its own GPU alone, as number 0.
        (slurm(8, 3, 4097, NODES) | {"CUDA_VISIBLE_DEVICES": "3"}, ("node001:61441", 8, 3, [0])),
        (slurm(8, 3, 4097, NODES) | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("node001:61441", 8, 3, [3])),
        # A step of fewer tasks than the allocation has.
        (slurm(8, 3, 4097, NODES) | {"SLURM_NTASKS": "32"}, ("node001:61441", 8, 3, [3])),
        (open_mpi(4, 1) | {"OMPI_MCA_orte_hnp_uri": ORTE}, ("10.96.0.1:62624", 4, 1, [1])),
    ],
)
def test_peers_are_found_where_slurm_and_open_mpi_started_them(environment, expected, monkeypatch):
    assert found(monkeypatch, environment) == expected


@pytest.mark.parametrize("environment", [slurm(8, 3, 1), open_mpi(8, 3)])
def test_a_coordinator_alone_is_enough_where_a_launcher_says_the_rest(environment, monkeypatch):
    # No GPU is picked then: the process has all that it sees.
    assert found(monkeypatch, environment, "node1:9876") == ("node1:9876", 8, 3, None)


def test_flags_keep_jax_from_looking_around():
    # In a shell of a SLURM allocation JAX would give the process one GPU of all.
    assert hosts.peers_of("h:1", 2, 0, slurm(1, 0, 1))["cluster_detection_method"] == "deactivate"


def test_one_process_is_alone_wherever_it_was_started():
    assert hosts.peers_of("", 1, -1, slurm(8, 3, 1)) is None
    assert hosts.peers_of("", 0, -1, {}) is None


def test_launchers_that_say_too_little_are_refused(monkeypatch):
    with pytest.raises(InputError, match="Open MPI 5 does not say where process 0 runs: give its --coordinator"):
        hosts.peers_of("", 0, -1, open_mpi(4, 1))
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    with pytest.raises(InputError, match="lacks the package 'kubernetes'"):
        hosts.peers_of("", 0, -1, pod)


class Metadata(http.server.BaseHTTPRequestHandler):
    """Google's metadata server, as a Cloud TPU VM of a slice of two hosts sees it."""

    ANSWERS: ClassVar = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2"}

    def do_GET(self) -> None:
        answer = self.ANSWERS.get(self.path.rpartition("/")[2])
        self.send_response(200 if answer else 404)
        self.end_headers()
        self.wfile.write((answer or "").encode())

    def log_message(self, *args: object) -> None:
        """Nothing."""


def test_a_cloud_tpu_slice_is_known_by_the_metadata_server(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert hosts.launcher({}) == ""  # No TPU chips here.
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    assert hosts.launcher({}) == "Cloud TPU"
    monkeypatch.setitem(Metadata.ANSWERS, "worker-network-endpoints", "a:0:10.0.0.1")
    assert hosts.launcher({}) == ""
    server.shutdown()
    server.server_close()
    assert hosts.launcher({}) == ""


def test_peers_that_do_not_come_are_told(monkeypatch):
    def refuse(**arguments: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\npages of C++")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match=r"--coordinator=h:1: .*did not find each other \(DEADLINE_EXCEEDED: Barrier"):
        hosts.join("h:1", 2, 0, {})


def test_a_gpu_that_a_process_cannot_use_is_no_fault_of_its_peers(monkeypatch):
    def refuse(**arguments: object) -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': driver too old")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match=r"^JAX cannot compute here \(Unable to initialize backend 'cuda': driver"):
        hosts.join("h:1", 2, 0, {})


def test_processes_with_different_numbers_of_devices_are_refused():
    device = collections.namedtuple("device", "process_index")
    hosts.check_devices([device(0), device(1)])
    with pytest.raises(InputError, match=r"process 0 has 1, process 1 has 2\); give each the same number"):
        hosts.check_devices([device(1), device(0), device(1)])


def test_a_peer_that_does_not_come_ends_in_a_line():
    """JAX aborts then: a page of C++ and exit code 134, upon which SLURM would queue the job again, twenty times."""
    script = "from resnet.train import hosts; hosts.MEET_SECONDS = 1; hosts.join('127.0.0.1:9', 2, 1, {})"
    ended = commands.run_fresh(sys.executable, "-c", script, environment={"JAX_PLATFORMS": "cpu"})
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "--coordinator=127.0.0.1:9: the processes did not find each other (one did not connect within 1 s)" in line
