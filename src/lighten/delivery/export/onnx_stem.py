"""Widening of the first convolution of an int8 ONNX file: images get zero channels up to four.

onnxruntime's integer convolutions read input channels four at a time; for fewer it falls back to unrolling the image
for a matrix product, which takes a ResNet's first layer longer than float32 does. Codes of zero times weights of zero
add nothing: the file computes the same, bit by bit.
"""

from typing import Any

from lighten.delivery.runtimes.onnx_count import NO_NODE, dequantizes

CHANNELS = 4
"""What integer kernels read at a time."""


def widen_stems(proto: Any) -> None:
    """Pad the input of each 2-D convolution with few input channels, and its weight, in place.

    Only convolutions between quantize and dequantize, without groups, are looked at.

    Args:
        proto: ``onnx.ModelProto`` with QuantizeLinear/DequantizeLinear pairs.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    for number, node in enumerate([n for n in graph.node if n.op_type == "Conv" and _groups(n) == 1]):
        image, weight = (made_by.get(name, NO_NODE) for name in node.input[:2])
        if not (dequantizes(image) and dequantizes(weight) and weight.input[0] in constants):
            continue
        stored = constants[weight.input[0]]
        missing = CHANNELS - stored.dims[1]
        if len(stored.dims) != 4 or missing <= 0:
            continue
        codes = np.pad(numpy_helper.to_array(stored), [(0, 0), (0, missing), (0, 0), (0, 0)])
        stored.CopyFrom(numpy_helper.from_array(codes, stored.name))
        pads, wide, output = (f"stem_{number}_{what}" for what in ("pads", "codes", "image"))
        graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, missing, 0, 0]), pads))
        zero_point = list(image.input[2:])
        new = [
            helper.make_node("Pad", [image.input[0], pads, *zero_point], [wide], name=f"stem_{number}_pad"),
            helper.make_node("DequantizeLinear", [wide, image.input[1], *zero_point], [output], name=output),
        ]
        new[1].attribute.extend(image.attribute)
        node.input[0] = output
        at = next(i for i, other in enumerate(graph.node) if other is node or other == node)
        for each in reversed(new):
            graph.node.insert(at, each)


def _groups(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)
