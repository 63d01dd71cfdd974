"""Does a heat map name the pixels that matter? Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, 3.2).

Deletion takes the pixels away, hottest first; insertion brings them back. After each step the
network is asked for the class' probability. A good map makes deletion fall and insertion rise early: its area under the
deletion curve is small, that under the insertion curve large.
"""

import numpy as np

from input_pipeline.contract import Contract
from resnet.study.inference import Model


def deletion_curve(
    model: Model, image: np.ndarray, saliency: np.ndarray, label: int, steps: int = 28, batch_size: int = 32
) -> np.ndarray:
    """The class' probability after 0, 1, …, `steps` equal shares of the pixels are taken away: float32[steps + 1].

    image: uint8[S, S, 3]. saliency: float[S, S], the order, greatest first (of equal ones row by row). A pixel taken
    away is one that the network sees as 0.
    """
    empty = np.broadcast_to(mean_pixel(model.meta.contract), image.shape)
    return _curve(model, image, empty, saliency, label, steps, batch_size)


def insertion_curve(
    model: Model, image: np.ndarray, saliency: np.ndarray, label: int, steps: int = 28, batch_size: int = 32
) -> np.ndarray:
    """The class' probability after 0, 1, …, `steps` equal shares of the pixels are brought back: float32[steps + 1].

    Onto an empty picture; the paper's blurred one keeps colours, which decide here.
    """
    empty = np.broadcast_to(mean_pixel(model.meta.contract), image.shape)
    return _curve(model, empty, image, saliency, label, steps, batch_size)


def area(curve: np.ndarray) -> float:
    """The area under a curve over shares 0..1 of the pixels, by trapezoids: 0..1."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def mean_pixel(contract: Contract) -> np.ndarray:
    """uint8[3], RGB: the pixel that the contract turns into 0 (to within rounding)."""
    pixel = np.round(np.asarray(contract.mean) / contract.scale).astype(np.uint8)
    return pixel[::-1] if contract.channel_order == "bgr" else pixel


def _curve(
    model: Model, start: np.ndarray, end: np.ndarray, saliency: np.ndarray, label: int, steps: int, batch_size: int
) -> np.ndarray:
    """The class' probability on the way from `start` to `end`, the most salient pixels first."""
    if steps < 1 or saliency.shape != start.shape[:2]:
        raise ValueError(f"{steps} steps over saliency {saliency.shape} of an image {start.shape}")
    order = np.argsort(-saliency, axis=None, kind="stable")
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    rank = places.reshape(saliency.shape)
    limits = np.round(np.linspace(0, order.size, steps + 1)).astype(np.int64)
    pictures = np.stack([np.where((rank < limit)[..., None], end, start) for limit in limits]).astype(np.uint8)
    return model.probabilities(pictures, batch_size)[:, label]
