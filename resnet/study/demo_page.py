"""The demo's page and what stands behind it: a picture goes in, what the network makes of it comes out."""

from __future__ import annotations

import dataclasses
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from fastapi import FastAPI
from PIL import Image

from input_pipeline.errors import InputError, printable
from input_pipeline.stream import decode_eval
from resnet.study.evaluate import describe_crop
from resnet.study.gradcam import default_stage, heat_maps, overlay
from resnet.study.inference import Model
from resnet.study.predict import read_image

TOP = 5
# Small inputs are shown enlarged, by whole factors, so that their pixels stay what they are.
SHOWN_SIDE = 320
# None of gradio's own, which a browser would ask others for.
FONTS: dict[str, Any] = {
    "font": ("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
    "font_mono": ("ui-monospace", "Consolas", "monospace"),
}
CSS = ".sentence {padding: 0.6em 1em; border-left: 4px solid #d9822b; font-size: 1.05em} footer {display: none}"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What is shown of one picture: probabilities by label, most probable first; pictures uint8[N, N, 3].

    seen: the picture as the network saw it. heat: the same under the Grad-CAM of `label`.
    """

    top: dict[str, float]
    seen: np.ndarray
    heat: np.ndarray
    label: str


class Explainer:
    """A model that tells of a picture in a file what it is, and where it looked."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.labels = distinct(model.meta.class_names)
        self.stage = default_stage(model.network.spec, model.crop.image_size)

    def warm_up(self) -> None:
        """Start the decoder and compile what every picture needs: the first one is answered as fast as the others."""
        side = self.model.crop.image_size
        encoded = io.BytesIO()
        Image.new("RGB", (side, side)).save(encoded, "PNG")
        empty = decode_eval(encoded.getvalue(), self.model.crop)[None]
        self.model.probabilities(empty)
        heat_maps(self.model, empty, np.zeros(1, np.int32), self.stage)

    def explain(self, file: Path, label: str = "") -> Explanation:
        """The picture in `file`; heat for `label`, one of `labels`, '' for the most probable.

        Raises InputError, a sentence that names the file, for what is no picture of a sensible size.
        """
        image = read_image(self.model, file)[None]
        probabilities = self.model.probabilities(image)[0]
        order = np.argsort(-probabilities, kind="stable")
        chosen = self.labels.index(label) if label in self.labels else int(order[0])
        heat = overlay(image, heat_maps(self.model, image, np.array([chosen], np.int32), self.stage))
        top = {self.labels[index]: float(probabilities[index]) for index in order[:TOP]}
        return Explanation(top, enlarged(image[0]), enlarged(heat[0]), self.labels[chosen])

    def how(self) -> str:
        """Contract and crop, as the page says them."""
        contract = self.model.meta.contract
        formula = f"(pixel × {contract.scale:.6g} − {numbers(contract.mean)}) / {numbers(contract.std)}"
        return (
            f"{describe_crop(self.model)} px, {contract.interpolation}; contract {printable(contract.name)}: "
            f"{contract.channel_order.upper()}, {formula}; Grad-CAM at {self.stage}"
        )


def numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def distinct(names: Sequence[str]) -> list[str]:
    """Names as labels of one line, those that several classes share with the class' number."""
    labels = [printable(name) for name in names]
    often = Counter(labels)
    return [f"{label} (class {number})" if often[label] > 1 else label for number, label in enumerate(labels)]


def enlarged(picture: np.ndarray) -> np.ndarray:
    factor = max(1, round(SHOWN_SIDE / len(picture)))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def uploads_only(file: gradio.File) -> gradio.File:
    """The drop zone, but for addresses: those that a client sends in place of a file are not fetched."""
    # Set on the object: of a class of our own gradio would write a stub beside this file.
    take = file.async_move_resource_to_block_cache

    async def taken(place: Any) -> str | None:
        if "://" in str(place or ""):
            raise ValueError("URLs are not fetched; upload the file")
        return await take(place)

    vars(file)["async_move_resource_to_block_cache"] = taken
    return file


def page(explainer: Explainer) -> gradio.Blocks:
    """The page. Every text that comes from a checkpoint or a file is shown as text, never as markup."""
    spec, names = explainer.model.network.spec, explainer.labels
    with gradio.Blocks(title="What does the network see?", analytics_enabled=False) as blocks:
        gradio.HTML(
            f"<h1>What does the network see?</h1><p>{len(names):,} classes, {explainer.model.crop.image_size} px, "
            f"stages {html.escape(str(spec.stage_sizes))}. The picture stays on this machine.</p>"
        )
        note = gradio.HTML("", visible=False, elem_id="sentence")
        with gradio.Row():
            with gradio.Column():
                file = uploads_only(gradio.File(label="Drop a picture: JPEG, PNG, BMP, GIF, WebP", elem_id="drop"))
                top = gradio.Label(label="Most probable; click for its heat map", num_top_classes=TOP)
            # Without gradio's button that shares a picture with the world.
            options: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
            seen = gradio.Image(label="As the network saw it", elem_id="seen", **options)
            heat = gradio.Image(label="Grad-CAM", elem_id="heat", **options)
        gradio.Textbox(explainer.how(), label="How the picture was prepared", interactive=False, elem_id="how")
        shown = [note, top, seen, heat]

        def answer(name: str | None, label: str = "") -> list[Any]:
            if not name:
                return blank("")
            try:
                found = explainer.explain(Path(name), label)
            except InputError as error:
                # The file's place on this machine is nobody's business.
                sentence = str(error).replace(printable(name), printable(Path(name).name))
                return blank(f'<div class="sentence">{html.escape(sentence)}</div>')
            title = f"Grad-CAM: evidence for {found.label}"
            return [gradio.HTML("", visible=False), found.top, found.seen, gradio.Image(found.heat, label=title)]

        def chosen(name: str | None, event: gradio.SelectData) -> list[Any]:
            return answer(name, str(event.value))

        file.change(answer, file, shown, api_name="explain", show_progress="minimal")
        top.select(chosen, file, shown, api_visibility="private", show_progress="minimal")
    return blocks


def blank(box: str) -> list[Any]:
    """What the page shows when there is no picture: nothing, or a sentence in a box."""
    return [gradio.HTML(box, visible=bool(box)), None, None, gradio.Image(None, label="Grad-CAM")]


def application(explainer: Explainer, most_bytes: int) -> FastAPI:
    """The page as an ASGI application, without a link or a script of anybody else."""
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page(explainer),
        path="/",
        max_file_size=most_bytes,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=gradio.themes.Default(**FONTS),
        css=CSS,
    )
