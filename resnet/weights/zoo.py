"""Known weights by name: address, hash, network, preprocessing and published accuracy in one table; fetched on demand.

Nothing is fetched at import. A file is fetched once into a cache, with a progress bar; what a broken connection left
is resumed; a file whose hash is not the table's is thrown away.

The hashes are those that the authors publish: torchvision and timm put the first eight hex digits of the SHA-256 into
the file's name, Keras lists MD5s. They tell a damaged or a wrong file; that it comes from the authors is up to TLS.
"""

import dataclasses
import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from input_pipeline.contract import CONTRACTS, Contract
from input_pipeline.errors import InputError, printable
from native.own_folders import cache_folder
from resnet.weights.faults import fault

EXAMPLE = "torchvision:resnet50_v1"
# Bytes written at a time: what a broken connection loses at most.
CHUNK = 1 << 16
# Seconds to connect, and of silence on an open connection.
TIMEOUT = (10, 60)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Published weights.

    hash: 'sha256:' and leading hex digits, or 'md5:'. top1: percent on ImageNet's validation images, as published.
    """

    name: str
    address: str
    hash: str
    model: str
    contract: Contract
    image_size: int
    top1: float
    published: str

    @property
    def file_name(self) -> str:
        return self.address.rsplit("/", 1)[-1]

    def describe(self) -> str:
        """One line for a listing."""
        use = f"{self.contract.name:6} {self.image_size} px"
        return f"{self.name:28} {self.model:16} {self.top1:6.2f} %  {use}  {self.published}"


def torchvision(depth: int, version: int, digest: str, top1: float) -> Entry:
    # The second recipe resizes to 232 before cropping 224.
    contract = CONTRACTS["torch"] if version == 1 else dataclasses.replace(CONTRACTS["torch"], resize_shorter=232 / 224)
    address = f"https://download.pytorch.org/models/resnet{depth}-{digest}.pth"
    name = f"torchvision:resnet{depth}_v{version}"
    return Entry(
        name, address, f"sha256:{digest}", f"resnet{depth}", contract, 224, top1, "torchvision's documentation"
    )


def timm(depth: int, recipe: str, digest: str, top1: float) -> Entry:
    # timm's settings for these weights: bicubic, and a crop of 95 % of the shorter side, which its transforms_factory
    # (transforms_imagenet_eval) makes floor(224 / 0.95) = 235 px.
    contract = dataclasses.replace(CONTRACTS["torch"], resize_shorter=235 / 224, interpolation="bicubic")
    release = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights"
    address = f"{release}/resnet{depth}_{recipe}_0-{digest}.pth"
    name = f"timm:resnet{depth}.{recipe}_in1k"
    return Entry(
        name, address, f"sha256:{digest}", f"resnet{depth}", contract, 224, top1, "Wightman et al. 2021, at 224 px"
    )


def keras(depth: int, digest: str, top1: float, *, version: int = 1) -> Entry:
    v2, contract = ("v2", "tf") if version == 2 else ("", "caffe")
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
    address = f"{folder}/resnet{depth}{v2}_weights_tf_dim_ordering_tf_kernels.h5"
    model = f"resnet{depth}_{v2}_keras" if v2 else f"resnet{depth}_keras"
    name = f"keras:resnet{depth}{v2}"
    return Entry(name, address, f"md5:{digest}", model, CONTRACTS[contract], 224, top1, "Keras' documentation")


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        torchvision(18, 1, "f37072fd", 69.758),
        torchvision(34, 1, "b627a593", 73.314),
        torchvision(50, 1, "0676ba61", 76.130),
        torchvision(50, 2, "11ad3fa6", 80.858),
        torchvision(101, 1, "63fe2227", 77.374),
        torchvision(101, 2, "cd907fc2", 81.886),
        torchvision(152, 1, "394f9c45", 78.312),
        torchvision(152, 2, "f82ba261", 82.284),
        timm(18, "a1", "d63eafa0", 71.5),
        timm(34, "a1", "46f8f793", 76.4),
        timm(50, "a2", "a2746f79", 79.8),
        timm(101, "a1", "cdcb52a9", 81.5),
        timm(152, "a1", "2eee8a7a", 82.0),
        dataclasses.replace(
            timm(50, "a1", "14fe96d1", 80.4),
            # The only one of the recipe that timm fetches from its author's own account.
            address="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth",
        ),
        keras(50, "2cb95161c43110f7111970584f804107", 74.9),
        keras(101, "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.4),
        keras(152, "100835be76be38e30d865e96f2aaae62", 76.6),
        keras(50, "3ef43a0b657b3be2300d5770ece849e0", 76.0, version=2),
        keras(101, "6343647c601c52e1368623803854d971", 77.2, version=2),
        keras(152, "a49b44d1979771252814e80f8ec446f9", 78.0, version=2),
    )
}


def find(source: str) -> Entry | None:
    """The known weights that `source` names; None for a file. Raises InputError for an unlisted name of a maker."""
    if source in ENTRIES:
        return ENTRIES[source]
    makers = {name.split(":")[0] for name in ENTRIES}
    if source.split(":")[0] in makers and ":" in source and not Path(source).exists():
        raise InputError(f"--source={printable(source)} is not known; known are {', '.join(ENTRIES)}")
    return None


def fetch(entry: Entry, cache: Path | None = None) -> Path:
    """The file of known weights, from the cache or fetched into it.

    Raises InputError: without a network one line that says which file to put where; for a wrong hash one that says so.
    """
    import requests

    folder = cache or cache_folder("weights")
    target = folder / entry.file_name
    if target.is_file():
        # It may have been put there by hand.
        if not has_hash(entry, target):
            raise fault(target, f"is not {entry.name}: its hash is not {entry.hash}…; remove it")
        return target
    partial = folder / f"{entry.file_name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "ab") as file:
            # Held while fetching: a second process that wants the same file waits and then finds it.
            fcntl.flock(file, fcntl.LOCK_EX)
            if target.is_file():
                return target
            try:
                download(entry, file, target)
            except requests.ConnectionError as error:
                # Its own words run over several hundred characters of nested exceptions.
                raise OSError("no connection to the server") from error
        if not has_hash(entry, partial):
            partial.unlink()
            raise fault(
                entry.name,
                f"what {entry.address} sent does not have the hash {entry.hash}…; it was discarded, try again",
            )
        partial.rename(target)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and target.is_file():
            return target
        raise fault(
            entry.name,
            f"{entry.address} cannot be downloaded ({printable(str(error)[:160])}); download it elsewhere and put it "
            f"at {printable(str(target))}",
        ) from error
    return target


def download(entry: Entry, file: BinaryIO, target: Path) -> None:
    """Append what is missing to the open partial file. Raises OSError when the server cannot be reached or stops."""
    import requests

    have = file.seek(0, os.SEEK_END)
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(entry.address, headers=headers, stream=True, timeout=TIMEOUT) as response:
        # 416: nothing is missing, or what is there is longer than the file; the hash tells which.
        if response.status_code == 416:
            return
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
            file.truncate(0)
        expected = have + int(response.headers.get("Content-Length", 0))
        with tqdm(
            total=expected or None, initial=have, unit="B", unit_scale=True, desc=target.name, leave=False, disable=None
        ) as bar:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    file.flush()
    if file.tell() < expected:
        raise OSError(f"the connection broke after {file.tell()} of {expected} bytes; run the same command to resume")


def has_hash(entry: Entry, path: Path) -> bool:
    """Whether a file's hash is the table's, as far as the table knows it."""
    algorithm, _, wanted = entry.hash.partition(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(wanted)
