"""Frames wider or narrower than the training images: resized to the model's size, all they show is squeezed.

Nothing fails then, and every part looks a little wrong: another crop or sensor mode of the same camera does it.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_ad.tiling import Size, format_size

TOLERANCE = 0.05  # of width over height: a crop a few pixels off shows the same view

Proportions = tuple[float, float]  # width over height, of the narrowest and of the widest


def proportions_of(sizes: Iterable[Size]) -> Proportions:
    """Of images (height, width).

    >>> proportions_of([(100, 250), (100, 200)])
    (2.0, 2.5)
    """
    found = [width / height for height, width in sizes]
    return min(found), max(found)


def misfit(frame: Size, trained: Proportions | None, image_size: Size) -> str | None:
    """What is wrong with frames of a size, and what to do; None where nothing is, or where nothing is known.

    Args:
        frame: (height, width).
        trained: of the training images.
        image_size: (height, width) of the model. A frame of that very size was resized by whoever made it.

    >>> misfit((1080, 1920), (1.0, 1.0), (512, 512))  # doctest: +NORMALIZE_WHITESPACE
    'frames of 1080x1920 are 1.78 times as wide as high, but the training images were 1.00 times: resized to
    512x512 they are squeezed differently; crop them alike'
    >>> misfit((1000, 1020), (1.0, 1.0), (512, 512))
    """
    if trained is None or tuple(frame) == tuple(image_size):
        return None
    low, high = trained
    found = frame[1] / frame[0]
    if low * (1 - TOLERANCE) <= found <= high * (1 + TOLERANCE):
        return None
    ends = dict.fromkeys(f"{end:.2f}" for end in trained)
    return (
        f"frames of {format_size(frame)} are {found:.2f} times as wide as high, but the training images were "
        f"{' to '.join(ends)} times: resized to {format_size(image_size)} they are squeezed differently; "
        "crop them alike"
    )
