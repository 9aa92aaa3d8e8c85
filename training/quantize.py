"""python3 -m training.quantize NAME: the int8 form of a run's best weights, and what it loses. `training.export NAME --int8` ships it.

The body of an Enlarge or Clean net becomes QLinearConv: activations of 0..255 whose zero is 0, which is what ReLU leaves, signed
weights of 8 bits, sums of 32. The first and the last convolution, the long residual and the output stay float: they are 2 to 4 % of the
work, and the difference that the net adds to the picture needs finer steps than a byte has.

- Each channel has its own step, which QLinearConv does not know of: it is folded into the weights behind it and into the factor that the
  sums before it are multiplied by (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
  equalise with the same freedom). It is the one with the least square error on the calibration patches.
- Each layer's weights are first fitted to what the float net gives, from the inputs as the whole-numbered layers before it give them.
  Then they are rounded one input after the other, and what is lost by one is made good by those after it, by the inverse of the inputs'
  covariance (Frantar et al., "GPTQ", ICLR 2023). The bias takes the mean error away.
- Processors without VNNI add two products in 16 bits, saturating (vpmaddubsw). No pair of weights here can reach that: the net gives
  the same everywhere.

Patches of the training pictures calibrate; the pictures held out and the benchmark sets only tell the loss.
"""

import argparse
import copy
import os

import numpy as np
import torch
import torch.nn.functional as F

from training import evaluate, images, onnx, recipes, tasks

PATCHES = 192  # that calibrate
FIRST_BATCH = 2_000_000  # steps that no training reaches
SAMPLES = 60_000  # places of the patches that a layer is fitted to
FINEST = 0.5 / 255  # an error of half a code is none
PAIR = 128  # 255 times the weights of a pair, of one sign, stays below 2^15


class Quantized(torch.nn.Module):
    """What the int8 net computes, to the bit except for the order of the float sums. Takes and gives what the float net does."""

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net)
        self.radius = net.radius
        self.steps = []  # of each channel: of the first convolution's output, then of each body layer's
        self.weights, self.biases, self.factors = [], [], []  # of each body layer; whole numbers as floats

    def first(self, x):
        return F.relu(self.net.first(x))

    def quantized(self, first):
        return torch.clamp(torch.round(first / _along(self.steps[0])), 0, 255)

    def body(self, y, layers):
        for weight, bias, factor in layers:
            # Whole numbers are exact in 32-bit floats below 2^24.
            most = float((255 * weight.abs().sum(dim=(1, 2, 3)) + bias.abs()).max())
            kind = torch.float32 if most < 1 << 24 else torch.float64
            whole = F.conv2d(y.to(kind), weight.to(kind), bias.to(kind), padding=1).float()
            y = torch.clamp(torch.round(whole * _along(factor)), 0, 255)
        return y

    def features(self, x):
        """What the last convolution sees."""
        first = self.first(x)
        return self.body(self.quantized(first), zip(self.weights, self.biases, self.factors)) * _along(self.steps[-1]) + first

    def forward(self, x):
        last = self.net.last(self.features(x))
        return F.pixel_shuffle(last + x, self.net.scale) if hasattr(self.net, "scale") else x + F.pixel_shuffle(last, 2)


def _along(values):
    return values.view(1, -1, 1, 1)


def best_step(values):
    """The step of the least mean square error of 0..255 steps for the values of one channel."""
    most = float(values.max())
    if most <= 0:
        return 0.0
    errors = []
    candidates = most * np.linspace(0.3, 1.0, 29) / 255
    for step in candidates:
        errors.append(float(((torch.clamp(torch.round(values / step), 0, 255) * step - values) ** 2).mean()))
    return float(candidates[int(np.argmin(errors))])


def steps_of(values):
    """Of each channel (rows). One that hardly ever is above 0 gets a step no smaller than a hundredth of the largest."""
    steps = torch.tensor([best_step(row) for row in values])
    return torch.clamp(steps, min=max(float(steps.max()) / 100, 1e-6))


def unfolded(y, places, size=3):
    """The neighbourhoods at some places, as columns in the order tap, channel: a pair is two neighbours."""
    count, channels = y.shape[:2]
    columns = F.unfold(y, size, padding=size // 2).view(count, channels, size**2, -1).permute(2, 1, 0, 3).reshape(size**2 * channels, -1)
    return columns[:, places].double()


def capped(column, before=None):
    """Weights in whole numbers, such that with those before them in their pairs, if they are the second ones, the 16 bits hold."""
    column = torch.clamp(torch.round(column), -127, 127)
    if before is None:
        return column
    return torch.maximum(torch.minimum(column, PAIR - torch.clamp(before, min=0)), -PAIR - torch.clamp(before, max=0))


def scale_of(weight, importance):
    """Of each output channel, what one of its whole numbers stands for: the least square error of plain rounding, weighed by the inputs."""
    scales, errors = [], []
    for factor in np.linspace(0.7, 1.3, 25):
        scales.append(torch.clamp(weight.abs().amax(dim=1) * factor / 127, min=1e-12))
        parts = weight / scales[-1][:, None]
        even = capped(parts[:, 0::2])
        whole = torch.stack([even, capped(parts[:, 1::2], even)], dim=2).view(weight.shape)
        errors.append(((whole * scales[-1][:, None] - weight) ** 2 * importance).sum(dim=1))
    return torch.stack(scales).gather(0, torch.stack(errors).argmin(dim=0)[None])[0]


def centred(columns):
    return columns - columns.mean(dim=1, keepdim=True)


def corrected(weight, columns, wanted, ridge):
    """The weights nearest to the given ones that make of the columns, but for a constant, what was wanted: least squares with a ridge.
    So each layer makes good what those before it have lost."""
    inputs = centred(columns)
    covariance = inputs @ inputs.T
    left = centred(wanted) - weight @ inputs
    damp = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return weight + torch.linalg.solve(covariance + damp, inputs @ left.T).T


def rounded(weight, columns):
    """(whole numbers, what one of them stands for in each row) of a matrix that the columns are multiplied by."""
    inputs = centred(columns)
    covariance = inputs @ inputs.T / inputs.shape[1]
    scale = scale_of(weight, covariance.diagonal())
    damp = 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(covariance + damp), upper=True)
    left, whole = weight.clone(), torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        whole[:, i] = capped(left[:, i] / scale, whole[:, i - 1] if i % 2 else None)
        error = (left[:, i] - whole[:, i] * scale) / inverse[i, i]
        left[:, i:] -= error[:, None] * inverse[i, i:][None]
    return whole, scale


def flat(weight):
    """A kernel as a matrix for the columns of unfolded()."""
    return weight.double().permute(0, 2, 3, 1).reshape(len(weight), -1)


def kernel(matrix, size=3):
    return matrix.view(len(matrix), size, size, -1).permute(0, 3, 1, 2).float().contiguous()


def drawn(net, batches, area, relative):
    """For each batch, places among the area of each of its patches; relative: the more often the less the float net errs there, since a
    loss in dB is relative. (By the inverse root: by the inverse, strong noise would lose three times as much as what is all but clean.)"""
    random = torch.Generator().manual_seed(1)
    weights = [(((net(given) - wanted) ** 2).mean(dim=(1, 2, 3)) + FINEST**2) ** (-0.5 if relative else 0.0) for given, wanted in batches]
    total = float(sum(w.sum() for w in weights))
    found = []
    for weight in weights:
        patch = torch.multinomial(weight, max(1, round(SAMPLES * float(weight.sum()) / total)), replacement=True, generator=random)
        found.append(patch * area + torch.randint(area, patch.shape, generator=random))
    return found


def quantize(net, batches, relative=False):
    """The Quantized form of a plain net, fitted to batches of (its input, what is wanted); relative: see drawn."""
    made = Quantized(net)
    with torch.no_grad():
        first = [F.relu(net.first(given)) for given, _ in batches]
        places = drawn(net, batches, first[0].shape[2] * first[0].shape[3], relative)

        def sampled(all_):
            return torch.cat([y.transpose(0, 1).flatten(1)[:, p] for y, p in zip(all_, places)], dim=1)

        made.steps.append(steps_of(sampled(first)))
        exact, whole = first, [made.quantized(y) for y in first]
        for layer in net.body:
            exact = [layer(y) for y in exact]
            _add_layer(made, layer, torch.cat([unfolded(y, p) for y, p in zip(whole, places)], dim=1), sampled(exact).double())
            exact = [F.relu(y) for y in exact]
            whole = [made.body(y, [(made.weights[-1], made.biases[-1], made.factors[-1])]) for y in whole]
        size = net.last.kernel_size[0]
        columns = torch.cat([unfolded(y * _along(made.steps[-1]) + x, p, size) for y, x, p in zip(whole, first, places)], dim=1)
        wanted = sampled([net.last(y + x) for y, x in zip(exact, first)]).double()
        weight = corrected(flat(net.last.weight), columns, wanted, 0.001)
        made.net.last.weight.copy_(kernel(weight, size))
        made.net.last.bias.copy_((wanted - weight @ columns).mean(dim=1))
    return made


def _add_layer(made, layer, columns, wanted):
    """Adds the whole numbers of a body layer. wanted is what the float layer gives where the columns are, before ReLU."""
    steps = steps_of(wanted.clamp(min=0).float())
    weight = corrected(flat(layer.weight * _along(made.steps[-1])), columns, wanted, 0.03)
    whole, scale = rounded(weight, columns)
    # The mean error counts where the answer is above 0 in either; elsewhere ReLU hides it.
    sums, bias = (whole @ columns) * scale[:, None], layer.bias.double()
    shown = (wanted > 0) | (sums + bias[:, None] > 0)
    mean = ((wanted - sums) * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
    bias = torch.where(shown.sum(dim=1) > 100, mean, bias)
    made.weights.append(kernel(whole))
    made.biases.append(torch.round(bias / scale).clamp(-(2**31) + 1, 2**31 - 1).float())
    made.factors.append((scale / steps.double()).float())
    made.steps.append(steps)


def fitted(name, net, folder, out):
    """(the Quantized form of a plain net, PSNR of both on the pictures held out)."""
    recipe = recipes.RECIPES[name]
    task = getattr(tasks, recipe.task)(recipe, folder, os.path.join(out, "cache"))
    batches = [task.batch(FIRST_BATCH + i) for i in range(PATCHES // recipe.batch)]
    cleaning = recipe.task == "Cleaning"
    if cleaning:
        batches += [(clean, clean) for _, clean in batches]  # which must stay so
    made = quantize(net, batches, relative=cleaning)
    return made, task.validate(net), task.validate(made)


def graph(made):
    """(nodes, constants) for onnx.write."""
    net = made.net
    constants = {"one": np.float32(1), "zero": np.uint8(0)}
    nodes = []

    def add(operator, inputs, output, attributes=None, **values):
        constants.update({f"{output}_{key}": value.numpy() if torch.is_tensor(value) else value for key, value in values.items()})
        nodes.append((operator, [f"{output}{i}" if i.startswith("_") else i for i in inputs], [output], attributes or {}))

    def shape(size, stride):
        return {"kernel_shape": [size] * 2, "pads": [(size - stride + 1) // 2] * 4, "strides": [stride] * 2}

    def convolution(layer, given, output):
        add("Conv", [given, "_weight", "_bias"], output, shape(layer.kernel_size[0], layer.stride[0]), weight=layer.weight.detach(), bias=layer.bias.detach())

    convolution(net.first, "input", "edges")
    add("Relu", ["edges"], "first")
    zeros = np.zeros(len(made.steps[0]), np.uint8)
    add("QuantizeLinear", ["first", "_step", "_zero"], "whole", {"axis": 1}, step=made.steps[0], zero=zeros)
    y = "whole"
    for i, (weight, bias, factor) in enumerate(zip(made.weights, made.biases, made.factors)):
        inputs = [y, "one", "zero", "_weight", "_factor", "_zero", "one", "zero", "_bias"]
        y = f"body{i}"
        # ReLU is in the bytes: what is below 0 saturates.
        add("QLinearConv", inputs, y, shape(3, 1), weight=weight.to(torch.int8), factor=factor, zero=zeros.view(np.int8), bias=bias.to(torch.int32))
    add("DequantizeLinear", [y, "_step", "_zero"], "y", {"axis": 1}, step=made.steps[-1], zero=zeros)
    add("Add", ["y", "first"], "features")
    convolution(net.last, "features", "difference")
    to_space = {"blocksize": getattr(net, "scale", 2), "mode": "CRD"}
    if hasattr(net, "scale"):
        add("Add", ["difference", "input"], "parts")
        add("DepthToSpace", ["parts"], "output", to_space)
    else:
        add("DepthToSpace", ["difference"], "change", to_space)
        add("Add", ["input", "change"], "output")
    return nodes, constants


def write(made, path):
    """Writes the ONNX file and returns the largest difference of its outputs, in numpy, from the Quantized net's on random pictures."""
    channels = made.net.first.in_channels
    onnx.write(path, *graph(made), channels)
    read, worst = onnx.read(path), 0.0
    for height, width in [(64, 64), (38, 50)]:
        given = torch.rand(1, channels, height, width)
        with torch.no_grad():
            worst = max(worst, float(np.abs(onnx.run(read, given.numpy()) - made(given).numpy()).max()))
    return worst


def table(name, net, made, folder):
    """(a Markdown table, one line, the largest loss in dB) of both forms' scores on the benchmark sets."""
    recipe = recipes.RECIPES[name]
    if recipe.task == "Enlarging":
        rows = [evaluate.enlarging(n, recipe.net["scale"], folder) for n in (net, made)]
        rows = [(a[0], a[1], a[3], b[3]) for a, b in zip(*rows)]
        of, base = "PSNR of Y", "bicubic"
    else:
        # Twenty pictures tell what is lost, and whole numbers are slow in PyTorch.
        rows = [evaluate.cleaning(n, recipe.options["from"], folder, 20) for n in (net, made)]
        rows = [(a[0], a[1], a[2], b[2]) for a, b in zip(*rows)]
        of, base = "PSNR on classic5, grey" if recipe.options["from"] == "for_restore" else "PSNR on the first 20 of CBSD68, colour", "input"
    text = f"| {of} | {base} | float | int8, shipped | lost |\n|---|---|---|---|---|\n"
    text += "".join(f"| {what} | {before:.2f} | {exact:.2f} | {whole:.2f} | {exact - whole:.3f} |\n" for what, before, exact, whole in rows)
    short = f"{of}: " + ", ".join(f"{what} {whole:.2f} dB ({base} {before:.2f})" for what, before, _, whole in rows) + "."
    return text, short, max(exact - whole for _, _, exact, whole in rows)


def main():
    from training import export, train

    parser = argparse.ArgumentParser(prog="python3 -m training.quantize", description=__doc__)
    parser.add_argument("name", choices=sorted(n for n, r in recipes.RECIPES.items() if r.task != "Masking"))
    parser.add_argument("--data")
    parser.add_argument("--out", default=train.RUNS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = images.data_folder(given.data)
    net, state = export.load(given.name, given.out)
    made, exact, whole = fitted(given.name, net, folder, given.out)
    print(f"step {state['step']}, held out: float {exact:.3f} dB, int8 {whole:.3f} dB, lost {exact - whole:.3f}", flush=True)
    print(table(given.name, net, made, folder)[0])


if __name__ == "__main__":
    main()
