#!/usr/bin/python3
"""Writes layers.txt: what PyTorch computes for layers and models, in float64.

    /usr/bin/python3 tests/golden/make_layers.py > tests/golden/layers.txt

Inputs and parameters are not stored: both sides make them from `pattern`. The tests read the file; its lines are

    op NAME key=value ...            a single operation, then its results
    model NAME key=value ...         a whole model, then its results
    layers TEXTPROTO                 of the model above
    loss VALUE correct COUNT         NLL summed over the rows, rows classified correctly
    tensor NAME size stride sum abs_sum VALUES...   a result: every stride-th element and two sums over all of them
"""
import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

MAX_VALUES = 400  # stored of one tensor


def pattern(stream, shape, scale=1.0):
    """Element i of a stream: a 32-bit hash of its number, as a float in [-scale, scale)."""
    size = int(np.prod(shape))
    x = np.arange(size, dtype=np.uint64) + np.uint64(stream * 1000003)
    for multiplier, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):
        x = (x * np.uint64(multiplier)) & np.uint64(0xFFFFFFFF)
        x ^= x >> np.uint64(shift)
    unit = (x >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.tensor((unit * np.float32(scale)).astype(np.float64).reshape(shape))


def labels(rows, classes):
    return torch.tensor([(3 * i + 1) % classes for i in range(rows)])


def tensor(name, value):
    flat = value.detach().reshape(-1).numpy()
    stride = max(1, -(-flat.size // MAX_VALUES))
    if stride > 1:
        stride |= 1  # odd, so that it does not walk along one column
    values = " ".join("%.8g" % v for v in flat[::stride])
    print("tensor", name, flat.size, stride, "%.12g" % flat.sum(), "%.12g" % np.abs(flat).sum(), values)


def operation(name, function, rows, shape, parameters=(), **keys):
    """y = function(x, *parameters); the gradients are those of sum(y * dy)."""
    x = pattern(1, (rows, *shape)).requires_grad_()
    tensors = [pattern(10 + i, s, 0.5).requires_grad_() for i, s in enumerate(parameters)]
    y = function(x, *tensors)
    y.backward(pattern(2, y.shape))
    header = dict(rows=rows, c=shape[0], h=shape[1], w=shape[2], **keys)
    print("op", name, *("%s=%s" % item for item in header.items()))
    tensor("y", y)
    tensor("dx", x.grad)
    for label, t in zip(("dweight", "dbias"), tensors):
        tensor(label, t.grad)


def operations():
    def linear(x, w, b):
        return F.linear(x.flatten(1), w, b)

    operation("linear", linear, 5, (7, 1, 1), [(6, 7), (6,)], out=6)
    operation("linear", linear, 3, (2, 3, 5), [(33, 30), (33,)], out=33)
    for rows, c, h, w, out, k, p in ((2, 1, 6, 6, 4, 3, 0), (3, 3, 5, 7, 5, 3, 1), (2, 16, 6, 5, 8, 1, 0),
                                     (2, 5, 8, 8, 17, 5, 2), (2, 32, 4, 4, 16, 2, 1)):
        operation("conv2d", lambda x, wt, b, p=p: F.conv2d(x, wt, b, padding=p), rows, (c, h, w),
                  [(out, c, k, k), (out,)], out=out, kernel=k, padding=p)
    for rows, c, h, w, k in ((2, 3, 6, 8, 2), (2, 4, 7, 5, 2), (1, 16, 9, 10, 3), (2, 3, 4, 4, 1)):
        operation("max_pool2d", lambda x, k=k: F.max_pool2d(x, k), rows, (c, h, w), kernel=k)
    operation("relu", F.relu, 3, (5, 2, 3))
    # The gradient of NLL, not of sum(y * dy): that is what a Device has.
    x = pattern(1, (6, 9), 4.0).requires_grad_()
    y = F.log_softmax(x, 1)
    F.nll_loss(y, labels(6, 9), reduction="sum").backward()
    print("op log_softmax rows=6 c=9 h=1 w=1")
    tensor("y", y)
    tensor("dx", x.grad)


def layer_text(kind, **fields):
    return "layer { %s { %s } }" % (kind, " ".join("%s: %s" % item for item in fields.items()))


def apply(x, kind, fields, parameters):
    if kind == "linear":
        return F.linear(x.flatten(1), parameters.pop(0), parameters.pop(0))
    if kind == "conv2d":
        return F.conv2d(x, parameters.pop(0), parameters.pop(0), padding=fields.get("padding", 0))
    if kind == "max_pool2d":
        return F.max_pool2d(x, fields.get("kernel", 2))
    if kind == "relu":
        return F.relu(x)
    if kind == "dropout":
        assert fields["p"] == 0
        return x
    if kind == "flatten":
        return x.flatten(1)
    return F.log_softmax(x.flatten(1), 1)


def model(name, rows, shape, classes, layers):
    x = pattern(1, (rows, *shape))
    tensors, names, count = [], [], {"fc": 0, "conv": 0}
    current = x
    for kind, fields in layers:  # one pass to learn the shapes
        own = []
        if kind in ("linear", "conv2d"):
            stem = "fc" if kind == "linear" else "conv"
            count[stem] += 1
            weight = ((fields["out"], current[0].numel()) if kind == "linear" else
                      (fields["out_channels"], current.shape[1], fields.get("kernel", 3), fields.get("kernel", 3)))
            bound = 1 / np.sqrt(np.prod(weight[1:]))
            for label, s in (("weight", weight), ("bias", weight[:1])):
                own.append(pattern(10 + len(tensors), s, bound).requires_grad_())
                tensors.append(own[-1])
                names.append("%s%d.%s" % (stem, count[stem], label))
        current = apply(current, kind, fields, own)
    loss = F.nll_loss(current, labels(rows, classes), reduction="sum")
    loss.backward()
    print("model", name, "rows=%d c=%d h=%d w=%d classes=%d" % (rows, *shape, classes))
    print("layers", " ".join(layer_text(kind, **fields) for kind, fields in layers))
    print("loss %.12g correct %d" % (loss.item(), (current.argmax(1) == labels(rows, classes)).sum().item()))
    for label, t in zip(names, tensors):
        tensor(label, t.grad)


def models():
    relu, flatten, log_softmax = ("relu", {}), ("flatten", {}), ("log_softmax", {})

    def linear(out):
        return ("linear", dict(out=out))

    def conv(out, **fields):
        return ("conv2d", dict(out_channels=out, **fields))

    def pool(kernel=2):
        return ("max_pool2d", dict(kernel=kernel))

    def dropout(p=0):
        return ("dropout", dict(p=p))

    model("softmax", 8, (1, 28, 28), 10, [flatten, linear(10), log_softmax])
    model("mlp", 8, (1, 28, 28), 10, [flatten, linear(256), relu, linear(128), relu, linear(10), log_softmax])
    model("small_convnet", 5, (2, 9, 9), 4,
          [conv(6, padding=1), relu, conv(10), pool(), relu, dropout(), flatten, linear(4), log_softmax])
    model("conv_after_pool", 3, (3, 11, 10), 5,
          [conv(16), relu, pool(), conv(8, kernel=2), relu, pool(2), flatten, linear(12), relu, linear(5),
           log_softmax])
    model("relu_first", 3, (2, 4, 4), 3, [relu, conv(3), relu, relu, flatten, linear(3), log_softmax])
    model("convnet", 4, (1, 28, 28), 10,
          [conv(16), relu, conv(32), relu, pool(), dropout(), flatten, linear(64), relu, dropout(), linear(10),
           log_softmax])


operations()
models()
