"""What a trained network sees in pictures: the most probable classes of each image.

python -m resnet.study.predict --checkpoint=DIR IMAGE_OR_FOLDER... [--top=5] [--json] [--gradcam=DIR|FILE.png]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from input_pipeline.encoded_files import read_encoded
from input_pipeline.errors import InputError, MissingPackage, printable
from input_pipeline.folder import IMAGE_EXTENSIONS, SUPPORTED_EXTENSIONS, supported_images
from input_pipeline.images import sniff
from input_pipeline.stream import decode_eval
from resnet import command
from resnet.study.evaluate import describe_crop

if TYPE_CHECKING:
    from resnet.study.inference import Model

# Images decoded and kept at a time: a folder of any size fits.
GROUP = 256
# On one sheet with their overlays.
SHEET = 64
# Who names such a file wants a picture, not a folder of that name.
NO_SHEETS = (IMAGE_EXTENSIONS | {".svg", ".pdf"}) - {".png"}


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir (best checkpoint), a step's folder, or converted weights"
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, or folders of them (searched, except for hidden files)"
    )
    parser.add_argument("--top", type=int, default=5, help="classes to print for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--gradcam",
        metavar="DIR|FILE.png",
        help="heat maps of each image's most probable class: a PNG per image in a folder, or all on one sheet",
    )
    parser.add_argument(
        "--on_error",
        choices=("fail", "skip"),
        default="fail",
        help="what an unreadable image does: end the command, or be reported in its place (default: fail)",
    )
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise InputError(f"--top={arguments.top} must be at least 1")
    paths = list(image_files(arguments.images))
    command.check_checkpoint(arguments.checkpoint)
    overlays = overlay_place(arguments.gradcam, len(paths)) if arguments.gradcam is not None else None
    # Here, not above: it takes seconds to import, and a slip in the flags is told at once.
    from resnet.study.inference import load_model

    model = load_model(arguments.checkpoint)
    if overlays is not None:
        make_place(overlays)
    answers = predict(model, paths, arguments.top, overlays, skip=arguments.on_error == "skip")
    results = tell_json(arguments.checkpoint, model, answers) if arguments.json else tell_lines(model, answers)
    unread = [result for result in results if "error" in result]
    if len(unread) == len(results):
        name, reason = printable(unread[0]["image"]), printable(unread[0]["error"])
        raise InputError(f"{name}: {reason}; none of the {len(unread):,} images can be read: fix them or name others")
    if overlays and not arguments.json:
        count = len(results) - len(unread)
        print(f"Grad-CAM overlays of {count:,} images are in {printable(str(overlays))}")
    return 0


def tell_json(checkpoint: str, model: Model, answers: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print one JSON object with all answers, which are returned; where they break off, with those there are and why.

    Raises what `answers` raises.
    """
    # Here, not above: it imports jax.
    from resnet.study.inference import crop_values

    results: list[dict[str, Any]] = []
    about = {
        "checkpoint": checkpoint,
        "contract": model.meta.contract.to_json(),
        "probabilities": model.meta.outputs,
        "image_size": model.crop.image_size,
        "crop": crop_values(model.crop),
        "images": results,
    }
    try:
        results.extend(answers)
    except InputError as error:
        if results:
            print(json.dumps(about | {"error": str(error)}))
        raise
    print(json.dumps(about))
    return results


def tell_lines(model: Model, answers: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a line for each answer as it comes, and one for how the images are seen before them; the answers."""
    results: list[dict[str, Any]] = []
    for result in answers:
        if not results:
            own = "; sigmoids: each class by itself" if model.meta.outputs == "sigmoid" else ""
            tqdm.write(f"Contract {printable(model.meta.contract.name)}, {describe_crop(model)}{own}")
        results.append(result)
        ranked = (f"{printable(item['class'])} {item['probability']:.1%}" for item in result.get("top", ()))
        said = f"not read: {printable(result['error'])}" if "error" in result else ", ".join(ranked)
        # Past the progress bar, which print would tear.
        tqdm.write(f"{printable(result['image'])}: {said}")
    return results


def overlay_place(name: str, count: int) -> Path:
    """What --gradcam names for `count` images: a sheet's file, or a folder. Touches nothing. Raises InputError."""
    if not name:
        raise InputError("--gradcam= is empty; name a folder, or a file that ends in .png")
    if Path(name).suffix.lower() in NO_SHEETS and not Path(name).is_dir():
        raise InputError(f"--gradcam={printable(name)}: a sheet is a PNG; name a file that ends in .png, or a folder")
    if is_sheet(Path(name)):
        if not Path(name).parent.is_dir():
            raise InputError(f"--gradcam={printable(name)}: name a file in a folder that exists")
        if count > SHEET:
            raise InputError(f"--gradcam={printable(name)}: a sheet holds {SHEET} images; name a folder for {count:,}")
    return Path(name)


def make_place(overlays: Path) -> None:
    """Make the folder of an `overlay_place`, if it is one. Raises InputError."""
    try:
        (overlays.parent if is_sheet(overlays) else overlays).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--gradcam={printable(str(overlays))}: cannot be made a folder ({error.strerror})") from error


def is_sheet(place: Path) -> bool:
    """Whether --gradcam means one picture of all, not a folder."""
    return place.suffix.lower() == ".png" and not place.is_dir()


def image_files(names: list[str]) -> Iterator[Path]:
    """The files themselves and, for a folder, every image below it in sorted order, by the rules of training.

    So hidden files and folders in it are passed over; one that is named itself is not. Raises InputError for what is
    not there.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = supported_images(str(path))
            if not found:
                raise InputError(f"{printable(name)}: no images in this folder ({', '.join(SUPPORTED_EXTENSIONS)})")
            yield from map(Path, found)
        elif path.is_file():
            yield path
        else:
            raise InputError(f"{printable(name)}: no such file or folder")


def predict(
    model: Model, paths: list[Path], top: int, overlays: Path | None = None, *, skip: bool = False
) -> Iterator[dict[str, Any]]:
    """{'image': path, 'top': [{'class', 'probability'}, …]} for each path, most probable first.

    With a place for `overlays` (`overlay_place`) the Grad-CAM overlay of each image is written there, and 'gradcam' is
    its path. skip: an image that cannot be read gets {'image': path, 'error': reason}; else the first one raises
    InputError, behind the answers of the groups before its own.
    """
    names = model.meta.class_names
    with tqdm(total=len(paths), unit="image", leave=False, disable=None if len(paths) > GROUP else True) as bar:
        for start in range(0, len(paths), GROUP):
            group = paths[start : start + GROUP]
            pictures, reasons = read_group(model, group, skip)
            images = np.stack(pictures) if pictures else np.zeros((0, 1, 1, 3), np.uint8)
            probabilities = model.probabilities(images)
            ranked = np.argsort(-probabilities, axis=1, kind="stable")
            readable = [path for path, reason in zip(group, reasons, strict=True) if not reason]
            wanted = overlays if readable else None
            files = write_overlays(model, readable, images, ranked[:, 0], wanted) if wanted else []
            number = 0
            for path, reason in zip(group, reasons, strict=True):
                if reason:
                    yield {"image": str(path), "error": reason}
                    continue
                row, order = probabilities[number], ranked[number, :top]
                yield {
                    "image": str(path),
                    "top": [{"class": names[index], "probability": float(row[index])} for index in order],
                    **({"gradcam": str(files[number])} if files else {}),
                }
                number += 1
            bar.update(len(group))


def read_group(model: Model, paths: list[Path], skip: bool) -> tuple[list[np.ndarray], list[str]]:
    """The images that can be read, as the network sees them, and for each path why it cannot be, '' where it can.

    Raises InputError for the first that cannot, unless told to skip.
    """
    images, reasons = [], []
    for path in paths:
        try:
            images.append(read_image(model, path))
            reasons.append("")
        except MissingPackage:
            raise
        except InputError as error:
            if not skip:
                advice = "fix it or leave it out, or use --on_error=skip to continue without it"
                raise InputError(f"{error}; {advice}") from error
            reasons.append(str(error).removeprefix(f"{printable(str(path))}: "))
    return images, reasons


def write_overlays(
    model: Model, paths: list[Path], images: np.ndarray, classes: np.ndarray, folder: Path
) -> list[Path]:
    """Write the Grad-CAM overlay of each image and class into `folder`, or all on that sheet; the files, in order."""
    # Here, not above: it imports jax and matplotlib.
    from resnet.study.gradcam import heat_maps, overlay, overlay_name, write_picture, write_sheet

    pictures = overlay(images, heat_maps(model, images, classes))
    if is_sheet(folder):
        names = [[model.meta.class_names[index], path.name] for index, path in zip(classes, paths, strict=True)]
        write_sheet(folder, images, pictures, names)
        return [folder] * len(paths)
    files = [folder / overlay_name(path) for path in paths]
    for file, picture in zip(files, pictures, strict=True):
        write_picture(file, picture)
    return files


def read_image(model: Model, path: Path) -> np.ndarray:
    """A file as the network sees it, uint8[S, S, 3]. Raises InputError that names the file."""
    try:
        data = read_encoded(path)
    except OSError as error:
        raise InputError(f"{printable(str(path))}: cannot be read ({error.strerror})") from error
    header = sniff(data, str(path))
    return decode_eval(data, model.crop, header.orientation, str(path))


if __name__ == "__main__":
    command.run(main)
