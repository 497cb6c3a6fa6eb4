import pytest
import torch

from edge_ad.methods.parts.full_float32 import full_float32


def switches():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_switches_are_off_inside_and_as_before_outside():
    before = switches()
    with full_float32():
        assert switches() == (False, False)
        with full_float32():
            pass
        assert switches() == (False, False)
    assert switches() == before
    with pytest.raises(ZeroDivisionError), full_float32():
        1 / 0  # noqa: B018
    assert switches() == before
