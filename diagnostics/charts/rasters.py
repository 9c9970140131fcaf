"""Small pictures of kept examples, as addresses that hold them: images, maps of classes, series and rows of numbers."""

import base64
import colorsys
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diagnostics.charts.theme import CATEGORIES

PIXELS = 96  # of the longer side, at least: a browser would blur what it enlarges
FINER = 3  # a line is drawn larger, and made smaller: smooth edges
Range = tuple[float, float]


def image(values: NDArray, scale: Range) -> str:
    """Of (rows, columns) grey or (rows, columns, 3) coloured numbers: black at the lower end of `scale`."""
    return _enlarged(Image.fromarray(np.round(255 * _shares(values, scale)).astype(np.uint8)))


def classes(values: NDArray) -> str:
    """Of a map (rows, columns) of class indices, a colour each; what is below 0 is left out."""
    seen, which = np.unique(np.where(np.isfinite(values), values, -1), return_inverse=True)
    colours = np.array([_colour(int(index)) if index >= 0 else (0, 0, 0, 0) for index in seen], np.uint8)
    return _enlarged(Image.fromarray(colours[which.reshape(values.shape)]))


def lines(values: NDArray, scale: Range) -> str:
    """Of (steps, series)."""
    width, height = 2 * PIXELS * FINER, PIXELS * FINER
    canvas = Image.new("RGBA", (width, height))
    x = np.linspace(FINER, width - FINER, len(values))
    for index, series in enumerate(values.T):
        points = np.column_stack([x, _heights(series, scale, height)])[np.isfinite(series)]
        if len(points) > 1:
            ImageDraw.Draw(canvas).line([tuple(each) for each in points], fill=_colour(index), width=2 * FINER)
    return _address(canvas.resize((width // FINER, height // FINER), Image.Resampling.LANCZOS))


def bars(values: NDArray, scale: Range) -> str:
    """Of (numbers,), from 0."""
    width, height = 2 * PIXELS, PIXELS
    canvas = Image.new("RGBA", (width, height))
    around = min(scale[0], 0.0), max(scale[1], 0.0)
    ground, *ends = _heights(np.append(0.0, np.where(np.isnan(values), 0.0, values)), around, height)
    edges = np.linspace(0, width, len(values) + 1)
    for left, right, end in zip(edges, edges[1:], ends, strict=False):
        box = (round(left), round(min(end, ground)), max(round(right) - 2, round(left)), round(max(end, ground)))
        ImageDraw.Draw(canvas).rectangle(box, fill=_colour(0))
    return _address(canvas)


def _heights(values: NDArray, scale: Range, height: int) -> NDArray:
    """Rows of pixels, from the top."""
    return (1 - _shares(values, scale)) * (height - 3) + 1


def _shares(values: NDArray, scale: Range) -> NDArray:
    """Of the way from the lower end of `scale` to the upper one; infinite numbers lie at an end, NaN at the lower."""
    low, high = scale
    finite = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
    return (finite - low) / ((high - low) or 1.0)


def _colour(index: int) -> tuple[int, int, int, int]:
    """The theme's, then as many others as there are classes, neighbours far apart."""
    if index < len(CATEGORIES):
        code = CATEGORIES[index].lstrip("#")
        return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16), 255
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.6, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue), 255


def _enlarged(picture: Image.Image) -> str:
    times = max(1, round(PIXELS / max(picture.size)))
    size = picture.width * times, picture.height * times
    return _address(picture.resize(size, Image.Resampling.NEAREST))


def _address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
