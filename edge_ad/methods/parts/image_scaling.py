"""Images as a pretrained network wants them.

Symbols: N batch, h, w tile size.
"""

from __future__ import annotations

from torch import Tensor, nn


def scale_image(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Float (N, 3, h, w), normalised by ``mean`` and ``std`` (1, 3, 1, 1), of ``image`` uint8 (N, h, w, 3)."""
    # (x / 255 - mean) / std as one multiply and one add
    return image.permute(0, 3, 1, 2).to(mean.dtype) * (1 / (255 * std)) - mean / std


class ScaledImages(nn.Module):
    """A network that is fed images and scales them itself.

    Args:
        mean, std: (1, 3, 1, 1) per channel, of images in [0, 1]; copied, and part of its state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.cpu().clone())
        self.register_buffer("std", std.cpu().clone())

    def scaled(self, image: Tensor) -> Tensor:
        """Float (N, 3, h, w) of ``image`` uint8 (N, h, w, 3)."""
        return scale_image(image, self.mean, self.std)
