"""The nets: plain 3x3 convolutions and ReLU in multiples of 16 channels, which ONNX Runtime runs fastest on a CPU.

While a super-resolution net trains, each convolution is a collapsible linear block (SESR: Bhardwaj et al., "Collapsible
Linear Blocks for Super-Efficient Super Resolution", MLSys 2022): a k x k convolution into many channels followed by a
1 x 1 one, collapsed into one k x k kernel before every step, so that a step costs what the plain net costs. `plain()`
gives the net that is shipped, with the collapsed kernels.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Collapsible(nn.Module):
    """A k x k convolution whose kernel is the product of a k x k one into `expand` channels and a 1 x 1 one.

    residual adds the input to the output (inputs == outputs), as a one in the middle of the kernel.
    gain is the variance of the output for input of variance 1, before the residual.
    """

    def __init__(self, inputs, outputs, size, expand, residual=False, gain=2.0):
        super().__init__()
        self.size, self.residual = size, residual
        self.wide = nn.Parameter(torch.randn(expand, inputs * size * size) / (inputs * size * size) ** 0.5)
        self.narrow = nn.Parameter(torch.randn(outputs, expand) * (gain / expand) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.shape = (outputs, inputs, size, size)

    def kernel(self):
        kernel = (self.narrow @ self.wide).view(self.shape)
        if self.residual:
            one = torch.zeros_like(kernel)
            middle = self.size // 2
            index = torch.arange(self.shape[0], device=kernel.device)
            one[index, index, middle, middle] = 1.0
            kernel = kernel + one
        return kernel

    def forward(self, x):
        return F.conv2d(x, self.kernel(), self.bias, padding=self.size // 2)

    def plain(self):
        with torch.no_grad():
            conv = nn.Conv2d(self.shape[1], self.shape[0], self.size, padding=self.size // 2)
            conv.weight.copy_(self.kernel())
            conv.bias.copy_(self.bias)
        return conv


def plain(net):
    """A copy of net with every collapsible block collapsed, on the CPU, for evaluation and export."""
    net = copy.deepcopy(net).cpu().float().eval()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Collapsible):
                setattr(module, name, child.plain())
    return net


def parameters(net):
    return sum(p.numel() for p in plain(net).parameters())


class Enlarge(nn.Module):
    """Luma, or `colours` planes, in 0..1 to `scale` times the size.

    A first convolution, `blocks` 3x3 ones with short residuals, a long residual over them, a last convolution into
    scale^2 sub-pixels, and the input added to each of the sub-pixels: what is learnt is the difference from pixel
    repetition, and no other resize is in the graph.
    """

    def __init__(self, scale, width=16, blocks=5, ends=5, expand=256, colours=1):
        super().__init__()
        self.scale, self.colours = scale, colours
        self.first = Collapsible(colours, width, ends, expand)
        self.body = nn.ModuleList(Collapsible(width, width, 3, expand, residual=True, gain=0.3) for _ in range(blocks))
        self.last = Collapsible(width, colours * scale * scale, ends, expand, gain=0.02)
        self.radius = (ends // 2) * 2 + blocks  # of the receptive field, in input pixels

    def forward(self, x):
        first = F.relu(self.first(x))
        y = first
        for block in self.body:
            y = F.relu(block(y))
        y = self.last(y + first)
        if self.colours == 1:
            y = y + x
        else:
            y = y + x.repeat_interleave(self.scale * self.scale, dim=1)
        return F.pixel_shuffle(y, self.scale)
