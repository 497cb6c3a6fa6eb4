"""The figure of a training's losses, read back from what was drawn."""

import cv2
import numpy as np

from edge_ad.experiment.plots import losses_figure, losses_png
from edge_ad.methods.tile_model import Losses

LOSSES = {
    "r00_c00": (
        Losses("first", (4.0, 3.0), (), 2),
        Losses("second", (5.0, 2.0, 1.0), ((2, 2.5), (3, 2.75)), 2),
    ),
    "r00_c01": (Losses("first", (6.0, 5.0, 4.0), (), 3),),
}


def test_stages_follow_each_other_and_the_kept_step_is_a_dot():
    (axes,) = losses_figure(LOSSES).axes
    drawn = [tuple(np.transpose(line.get_xydata()).tolist()) for line in axes.lines]
    assert drawn == [
        ([1, 2], [4, 3]),
        ([3, 4, 5], [5, 2, 1]),
        ([4, 5], [2.5, 2.75]),
        ([4], [2.5]),
        ([1, 2, 3], [6, 5, 4]),
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(LOSSES)
    assert axes.get_yscale() == "log"


def test_losses_below_zero_have_a_linear_axis():
    (axes,) = losses_figure({"r00_c00": (Losses("flow", (3.0, -2.0), (), 2),)}).axes
    assert axes.get_yscale() == "linear"


def test_it_is_a_picture():
    assert cv2.imdecode(np.frombuffer(losses_png(LOSSES), np.uint8), cv2.IMREAD_COLOR).shape[2] == 3
