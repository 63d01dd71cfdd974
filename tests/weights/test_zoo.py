"""Known weights: the table, and fetching by a server on this machine that breaks off, resumes and lies."""

import dataclasses
import hashlib
import http.server
import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from resnet.model.variants import VARIANTS
from resnet.weights import classes, zoo

CONTENT = bytes(range(256)) * 4096


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any address; `stop_after` bytes of an answer the connection breaks."""

    stop_after = len(CONTENT)
    resumes = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.starts: list[int] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.server.resumes else 0
        self.server.starts.append(start)
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if asked and self.server.resumes else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.server.stop_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def entry(server: Server, digest: str = hashlib.sha256(CONTENT).hexdigest()[:8]) -> zoo.Entry:
    address = f"http://127.0.0.1:{server.server_port}/resnet18-{digest}.pth"
    known = zoo.ENTRIES["torchvision:resnet18_v1"]
    return dataclasses.replace(known, address=address, hash=f"sha256:{digest}")


def test_fetches_once(server: Server, tmp_path: Path) -> None:
    path = zoo.fetch(entry(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert zoo.fetch(entry(server), tmp_path) == path
    assert server.starts == [0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("resumes", [True, False])
def test_goes_on_where_the_connection_broke(server: Server, tmp_path: Path, resumes: bool) -> None:
    server.stop_after = 300_000
    with pytest.raises(InputError, match="cannot be downloaded"):
        zoo.fetch(entry(server), tmp_path)
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < kept <= 300_000
    server.stop_after, server.resumes = len(CONTENT), resumes
    assert zoo.fetch(entry(server), tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, kept if resumes else 0]


def test_a_partial_file_that_was_whole(server: Server, tmp_path: Path) -> None:
    known = entry(server)
    (tmp_path / f"{known.file_name}.part").write_bytes(CONTENT)
    assert zoo.fetch(known, tmp_path).read_bytes() == CONTENT


def test_wrong_hash_is_thrown_away(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not have the hash sha256:00000000") as caught:
        zoo.fetch(entry(server, "00000000"), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_says_which_file_to_put_where(server: Server, tmp_path: Path) -> None:
    known = entry(server)
    nowhere = dataclasses.replace(known, address=known.address.replace(str(server.server_port), "1"))
    with pytest.raises(InputError) as caught:
        zoo.fetch(nowhere, tmp_path)
    assert "\n" not in str(caught.value)
    assert nowhere.address in str(caught.value)
    assert str(tmp_path / nowhere.file_name) in str(caught.value)
    (tmp_path / nowhere.file_name).write_bytes(CONTENT)
    assert zoo.fetch(nowhere, tmp_path).read_bytes() == CONTENT
    (tmp_path / nowhere.file_name).write_bytes(b"another")
    with pytest.raises(InputError, match="remove it"):
        zoo.fetch(nowhere, tmp_path)


def test_table_is_sound() -> None:
    for name, known in zoo.ENTRIES.items():
        algorithm, _, digest = known.hash.partition(":")
        assert known.name == name
        assert known.model in VARIANTS
        assert known.address.startswith("https://")
        assert len(digest) == {"sha256": 8, "md5": 32}[algorithm]
        # A transposed figure would be seen: published accuracies of ResNets on ImageNet.
        assert 69 < known.top1 < 83
        # torchvision and timm publish the hash as part of the name.
        assert algorithm == "md5" or digest in known.file_name


@pytest.mark.parametrize(
    ("name", "model", "contract", "shorter", "interpolation"),
    [
        ("torchvision:resnet50_v1", "resnet50", "torch", 256, "bilinear"),
        # A resize or interpolation other than the authors' costs up to a point. timm's is rounded down: 224 / 0.95.
        ("torchvision:resnet50_v2", "resnet50", "torch", 232, "bilinear"),
        ("timm:resnet50.a1_in1k", "resnet50", "torch", 235, "bicubic"),
        ("keras:resnet50", "resnet50_keras", "caffe", 256, "bilinear"),
        ("keras:resnet50v2", "resnet50_v2_keras", "tf", 256, "bilinear"),
    ],
)
def test_preprocessing_is_part_of_the_name(
    name: str, model: str, contract: str, shorter: int, interpolation: str
) -> None:
    known = zoo.find(name)
    assert known is not None
    assert (known.model, known.contract.name, known.image_size) == (model, contract, 224)
    crop = Crop(kind="none", image_size=known.image_size, resize_shorter=known.contract.resize_shorter)
    assert (crop.shorter_side, known.contract.interpolation) == (shorter, interpolation)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="torchvision:resnet50_v1"):
        zoo.find("torchvision:resnet51")
    assert zoo.find("some/file.pth") is None


def test_imagenet_names_stand_in_the_order_of_their_ids() -> None:
    listed = classes.imagenet()
    ids = [wordnet_id for wordnet_id, _ in listed]
    assert len(listed) == 1000
    assert ids == sorted(ids)
    assert len({name for _, name in listed}) == 1000
    assert listed[0] == ("n01440764", "tench")
    assert listed[207] == ("n02099601", "golden retriever")
    assert listed[999] == ("n15075141", "toilet tissue")


def test_imagenet_ids_are_those_of_tfds() -> None:
    # Found, not imported: importing it takes seconds.
    datasets = importlib.util.find_spec("tensorflow_datasets")
    assert datasets is not None, "tensorflow-datasets is one of requirements.txt"
    assert datasets.origin
    folder = Path(datasets.origin).parent / "image_classification"
    theirs = (folder / "imagenet_resized_labels.txt").read_text().split()
    assert {wordnet_id for wordnet_id, _ in classes.imagenet()} == set(theirs)
