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

    def __init__(self, inputs, outputs, size, expand, residual=False, gain=2.0, stride=1):
        super().__init__()
        self.size, self.residual, self.stride = size, residual, stride
        self.padding = (size - stride + 1) // 2
        self.wide = nn.Parameter(torch.randn(expand, inputs * size * size) / (inputs * size * size) ** 0.5)
        self.narrow = nn.Parameter(torch.randn(outputs, expand) * (gain / expand) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.shape = (outputs, inputs, size, size)
        if residual:
            one = torch.zeros(self.shape)
            one[range(outputs), range(outputs), size // 2, size // 2] = 1.0
            self.register_buffer("one", one, persistent=False)

    def ignore_brightness(self):
        """Makes the kernel's entries sum to zero for each input at first. What is learnt are differences; features that begin by
        measuring brightness are pushed down together and die."""
        with torch.no_grad():
            wide = self.wide.view(len(self.wide), self.shape[1], -1)
            wide -= wide.mean(dim=2, keepdim=True)
        return self

    def kernel(self):
        # Exact also where the rest is computed in 16 bits: the product of two kernels would lose too much.
        with torch.autocast(self.bias.device.type, enabled=False):
            kernel = (self.narrow @ self.wide).view(self.shape)
            return kernel + self.one if self.residual else kernel

    def forward(self, x):
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding)

    def plain(self):
        with torch.no_grad():
            conv = nn.Conv2d(self.shape[1], self.shape[0], self.size, self.stride, self.padding, device=self.bias.device)
            conv.weight.copy_(self.kernel())
            conv.bias.copy_(self.bias)
        return conv


def plain(net):
    """A copy of net with every collapsible block collapsed, for evaluation and export."""
    net = copy.deepcopy(net).float().eval()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Collapsible):
                setattr(module, name, child.plain())
    return net


def parameters(net):
    return sum(p.numel() for p in plain(net).parameters())


class Enlarge(nn.Module):
    """Luma in 0..1 to `scale` times the size.

    A first convolution, `blocks` 3x3 ones with short residuals, a long residual over them, a last convolution into
    scale^2 sub-pixels, and the input added to each of the sub-pixels: what is learnt is the difference from pixel
    repetition, and no other resize is in the graph.
    """

    def __init__(self, scale, width=16, blocks=5, ends=(5, 5), expand=256):
        super().__init__()
        self.scale = scale
        self.first = Collapsible(1, width, ends[0], expand, gain=8.0).ignore_brightness()
        self.body = nn.ModuleList(Collapsible(width, width, 3, expand, residual=True, gain=0.3) for _ in range(blocks))
        self.last = Collapsible(width, scale * scale, ends[1], expand, gain=0.0)  # see Clean
        self.radius = ends[0] // 2 + blocks + ends[1] // 2  # of the receptive field, in input pixels

    def forward(self, x):
        first = F.relu(self.first(x))
        y = first
        for block in self.body:
            y = F.relu(block(y))
        return F.pixel_shuffle(self.last(y + first) + x, self.scale)


class Clean(nn.Module):
    """Colour in 0..1 to the same size: noise, JPEG or blur removed, by which weights it has.

    Works at half the size, as FFDNet does (Zhang, Zuo and Zhang 2018): its first convolution has a stride of 2, which is
    the same as a rearrangement into four times the channels and a 3 x 3 convolution after it. The sides must be even.
    """

    def __init__(self, width=32, blocks=8, expand=128):
        super().__init__()
        self.first = Collapsible(3, width, 6, expand, stride=2, gain=8.0).ignore_brightness()
        self.body = nn.ModuleList(Collapsible(width, width, 3, expand, residual=True, gain=0.3) for _ in range(blocks))
        # At first nothing is removed. A random answer would be unlearnt by the quickest way there is, features that die.
        self.last = Collapsible(width, 12, 3, expand, gain=0.0)
        self.radius = 2 * (blocks + 1) + 3

    def forward(self, x):
        first = F.relu(self.first(x))
        y = first
        for block in self.body:
            y = F.relu(block(y))
        return x + F.pixel_shuffle(self.last(y + first), 2)


def _pair(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )


class Subject(nn.Module):
    """Where the people are: a U-Net (Ronneberger et al. 2015) over the whole picture, resized to a side that 32 divides.

    Gives one plane before the sigmoid.
    """

    WIDTHS = (16, 32, 64, 96, 128)

    def __init__(self):
        super().__init__()
        widths = (3,) + self.WIDTHS
        self.down = nn.ModuleList(_pair(widths[i], widths[i + 1], 2) for i in range(5))
        # The widest view: dilated, so that a person who fills the picture is seen as one.
        self.wide = nn.Sequential(nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(128), nn.ReLU())
        self.up = nn.ModuleList(_pair(widths[i + 1] + widths[i], max(widths[i], 16), 1) for i in (4, 3, 2, 1))
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x):
        seen = []
        for step in self.down:
            x = step(x)
            seen.append(x)
        x = self.wide(x)
        for step, before in zip(self.up, reversed(seen[:-1])):
            x = step(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), before], dim=1))
        return F.interpolate(self.last(x), scale_factor=2.0, mode="bilinear", align_corners=False)
