"""Products whose numbers have eight bits already, stored so that OpenVINO runs them in int8.

`edge_ad.methods.parts.eight_bits` makes them in torch, where they are float32. The converter keeps them so; here a
constant of whole multiples of `STEP` becomes a byte per number, converted and scaled, which is how the engine knows
weights. Without the scale it takes a stack of matrices for float.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_ad.methods.parts.eight_bits import LARGEST, STEP
from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import openvino as ov
    from openvino import opset13 as op

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")


def store_int8(model: ov.Model) -> None:
    """Replace the constant side of every product with rounded numbers, where it is whole, by int8. In place."""
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        for constant, other in _sides(product):
            if constant.get_type_name() == "Constant" and _origin(other).get_type_name() == "FakeQuantize":
                whole = constant.data / np.float32(STEP)
                if (np.abs(whole) <= LARGEST).all() and (whole == np.rint(whole)).all():
                    stored = op.convert(op.constant(whole.astype(np.int8)), ov.Type.f32)
                    scaled = op.multiply(stored, op.constant(np.float32(STEP)))
                    for reader in constant.output(0).get_target_inputs():
                        reader.replace_source_output(scaled.output(0))


def _sides(product: ov.Node) -> Iterator[tuple[ov.Node, ov.Node]]:
    left, right = (port.get_node() for port in product.input_values())
    yield left, right
    yield right, left


def _origin(node: ov.Node) -> ov.Node:
    """What computed the numbers of ``node``, past operations that move them."""
    while node.get_type_name() in _MOVES:
        node = node.input_value(0).get_node()
    return node
