"""Reads, writes and runs ONNX files in numpy: a second opinion on an export, and the nets of whole numbers, without any package.

Only what our nets use is known: Conv (stride, padding, dilation), Relu, Add, Concat, DepthToSpace (CRD), Resize by two, and
QuantizeLinear, QLinearConv and DequantizeLinear (unsigned activations whose zero is 0, signed weights).
An ONNX file is a protocol buffer; the numbers of fields are those of onnx.proto.
"""

import struct

import numpy as np


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data):
    """{number: [value, ...]} of a message: ints, or bytes of what is nested."""
    at, found = 0, {}
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            length = {1: 8, 5: 4}[kind]
            value, at = data[at : at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found


def _ints(values):
    """A repeated int64, packed or not."""
    out = []
    for value in values:
        if isinstance(value, int):
            out.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            out.append(number)
    return [v - (1 << 64) if v >> 63 else v for v in out]


_KINDS = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}  # of TensorProto


def _tensor(data):
    fields = _fields(data)
    shape = _ints(fields.get(1, []))
    kind = _KINDS[fields[2][0]]
    if 9 in fields:
        return np.frombuffer(fields[9][0], kind).reshape(shape)
    values = struct.unpack(f"<{len(fields[4][0]) // 4}f", fields[4][0]) if 4 in fields else _ints(fields.get(7, []))
    return np.array(values, kind).reshape(shape)


def _attribute(data):
    fields = _fields(data)
    name = fields[1][0].decode()
    if 5 in fields:
        return name, _tensor(fields[5][0])
    if 8 in fields:
        return name, _ints(fields[8])
    if 4 in fields:
        return name, fields[4][0].decode()
    if 2 in fields:
        return name, struct.unpack("<f", fields[2][0])[0]
    return name, _ints(fields.get(3, [0]))[0]


def read(path):
    """(nodes, constants): nodes are (operator, inputs, outputs, attributes)."""
    with open(path, "rb") as f:
        graph = _fields(_fields(f.read())[7][0])
    nodes = []
    for data in graph[1]:
        fields = _fields(data)
        names = [[v.decode() for v in fields.get(i, [])] for i in (1, 2)]
        nodes.append((fields[4][0].decode(), names[0], names[1], dict(_attribute(a) for a in fields.get(5, []))))
    constants = {_fields(t)[8][0].decode(): _tensor(t) for t in graph.get(5, [])}
    return nodes, constants


def _number(value):
    """A varint; a negative number has ten bytes, as in every protocol buffer."""
    value, out = value & (1 << 64) - 1, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


def _message(*parts):
    """Of (number of the field, value): whole numbers, texts, bytes of what is nested."""
    out = b""
    for field, value in parts:
        if isinstance(value, int):
            out += _number(field << 3) + _number(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += _number(field << 3 | 2) + _number(len(value)) + value
    return out


def _attribute_of(name, value):
    if isinstance(value, str):
        return _message((1, name), (4, value), (20, 3))
    if isinstance(value, int):
        return _message((1, name), (3, value), (20, 2))
    return _message((1, name), *[(8, int(v)) for v in value], (20, 7))


def _tensor_of(name, value):
    value = np.asarray(value)
    kind = next(k for k, of in _KINDS.items() if of == value.dtype)
    return _message(*[(1, n) for n in value.shape], (2, kind), (8, name), (9, value.tobytes()))


def _picture(name, channels, suffix):
    """float32 of one picture with free sides."""
    sides = [_message((1, 1)), _message((1, channels)), _message((2, "height" + suffix)), _message((2, "width" + suffix))]
    return _message((1, name), (2, _message((1, _message((1, 1), (2, _message(*[(1, side) for side in sides])))))))


def write(path, nodes, constants, channels):
    """The reverse of read, for a net from `input` to `output` of pictures with so many channels."""
    graph = [(1, _message(*[(1, i) for i in inputs], *[(2, o) for o in outputs], (4, operator), *[(5, _attribute_of(*a)) for a in attributes.items()]))
             for operator, inputs, outputs, attributes in nodes]
    graph += [(2, "net"), *[(5, _tensor_of(name, value)) for name, value in constants.items()]]
    graph += [(11, _picture("input", channels, "")), (12, _picture("output", channels, "_out"))]
    with open(path, "wb") as f:
        f.write(_message((1, 7), (2, "training/onnx.py"), (7, _message(*graph)), (8, _message((1, ""), (2, 13)))))


def _conv(x, weight, bias, attributes):
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    stride, spread = attributes.get("strides", [1, 1])[0], attributes.get("dilations", [1, 1])[0]
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = (weight.shape[2] - 1) * spread + 1
    height, width = ((x.shape[i] - reach) // stride + 1 for i in (2, 3))
    out = np.zeros((x.shape[0], weight.shape[0], height, width), np.float64)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            part = x[:, :, i * spread : i * spread + (height - 1) * stride + 1 : stride, j * spread : j * spread + (width - 1) * stride + 1 : stride]
            out += np.einsum("ncij,kc->nkij", part, weight[:, :, i, j])
    return (out + bias[None, :, None, None]).astype(np.float32)


def _to_space(x, size):
    count, channels, height, width = x.shape
    x = x.reshape(count, channels // size**2, size, size, height, width).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(count, channels // size**2, height * size, width * size)


def _twice(x, attributes):
    """Resize by two, nearest or bilinear with half-pixel centres."""
    if attributes["mode"] == "nearest":
        return x.repeat(2, axis=2).repeat(2, axis=3)
    for axis in (2, 3):
        size = x.shape[axis]
        at = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        shape = [1] * 4
        shape[axis] = -1
        part = (at - low).astype(np.float32).reshape(shape)
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, size - 1), axis) * part
    return x


def _along_channels(scale):
    return scale.reshape(1, -1, 1, 1) if scale.ndim else scale


def _rounded(x):
    """To the nearest byte, halves to even."""
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def run(graph, given):
    nodes, constants = graph
    values = dict(constants, input=given)
    for operator, inputs, outputs, attributes in nodes:
        args = [values.get(name) for name in inputs]
        if operator == "Conv":
            out = _conv(args[0], args[1], args[2], attributes)
        elif operator == "QuantizeLinear":
            out = _rounded(args[0] / _along_channels(args[1]))
        elif operator == "DequantizeLinear":
            out = args[0].astype(np.float32) * _along_channels(args[1])
        elif operator == "QLinearConv":
            whole = _conv(args[0].astype(np.float64), args[3].astype(np.float64), args[8], attributes)
            out = _rounded(whole * _along_channels(args[1] * args[4] / args[6]))
        elif operator == "Relu":
            out = np.maximum(args[0], 0)
        elif operator == "Add":
            out = args[0] + args[1]
        elif operator == "Concat":
            out = np.concatenate(args, axis=attributes["axis"])
        elif operator == "DepthToSpace" and attributes["mode"] == "CRD":
            out = _to_space(args[0], attributes["blocksize"])
        elif operator == "Resize":
            out = _twice(args[0], attributes)
        elif operator in ("Identity", "Constant"):
            out = attributes["value"] if operator == "Constant" else args[0]
        else:
            raise ValueError(f"operator {operator} is not known here")
        values[outputs[0]] = out
    return values[nodes[-1][2][0]]
