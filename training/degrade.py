"""What pictures suffer before they reach us: blur, shrinking, noise, JPEG. Batched, on the CPU or a GPU.

Pictures are float tensors in 0..255, count x channels x height x width; `random` is a numpy generator for the few numbers
that choose what happens, `noise` a torch generator on the pictures' device for the many.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from training import images

# ITU-T T.81 annex K, tables K.1 and K.2: what every encoder scales by its quality.
_LUMA_TABLE = [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
               18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99]
_CHROMA_TABLE = [17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99] + [99] * 32


def rounded(x):
    """As a file of 8 bits holds it."""
    return x.round().clamp(0, 255)


def luma(rgb):
    """Studio-range Y of count x 3 x height x width in 0..255."""
    weight = torch.tensor([65.481, 128.553, 24.966], device=rgb.device) / 255
    return torch.einsum("ncij,c->nij", rgb, weight)[:, None] + 16


@functools.lru_cache(maxsize=64)
def _shrink(size, scale, device):
    return torch.from_numpy(images.matrix(size, size // scale)).to(device)


def shrink(x, scale):
    """MATLAB's antialiased bicubic by a whole factor."""
    return _shrink(x.shape[2], scale, x.device) @ x @ _shrink(x.shape[3], scale, x.device).T


def add_noise(x, sigma, noise):
    """White Gaussian noise; sigma: count, of 0..255."""
    return x + torch.randn(x.shape, generator=noise, device=x.device) * sigma[:, None, None, None]


def camera_noise(x, sigma, noise, random):
    """Noise as a camera's processing leaves it: stronger where it is bright, soft over neighbouring pixels, and in part common to the channels."""
    white = torch.randn(x.shape, generator=noise, device=x.device)
    common = torch.randn(x[:, :1].shape, generator=noise, device=x.device)
    grain = 0.7 * white + 0.7 * common
    width = random.uniform(0.3, 0.9)
    kernel = gaussian(torch.full((x.shape[0],), width, device=x.device), 5)
    grain = blur(grain, kernel)
    grain = grain / grain.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    return x + grain * sigma[:, None, None, None] * (0.5 + 0.5 * (x / 128).clamp(0, 2).sqrt())


def gaussian(sigma, size, ratio=None, angle=None):
    """Kernels count x size x size. sigma: count, pixels; ratio: of the other axis, and its angle, for an elliptic one."""
    at = torch.arange(size, device=sigma.device) - size // 2
    y, x = torch.meshgrid(at.float(), at.float(), indexing="ij")
    ratio = torch.ones_like(sigma) if ratio is None else ratio
    angle = torch.zeros_like(sigma) if angle is None else angle
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = c * x + s * y, c * y - s * x
    sigma = sigma.clamp(min=0.05)[:, None, None]
    kernel = torch.exp(-0.5 * ((along / sigma) ** 2 + (across / (sigma * ratio[:, None, None])) ** 2))
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def disk(radius, size):
    """Kernels of a lens out of focus. radius: count, pixels."""
    at = torch.arange(size, device=radius.device) - size // 2
    y, x = torch.meshgrid(at.float(), at.float(), indexing="ij")
    kernel = (radius[:, None, None] + 0.5 - (x**2 + y**2).sqrt()).clamp(0, 1)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def line(length, angle, size):
    """Kernels of a straight movement. length: count, pixels; angle: count, radians."""
    at = torch.arange(size, device=length.device) - size // 2
    y, x = torch.meshgrid(at.float(), at.float(), indexing="ij")
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = (c * x + s * y).abs(), (c * y - s * x).abs()
    kernel = (length[:, None, None] / 2 + 0.5 - along).clamp(0, 1) * (1 - across).clamp(0, 1)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def blur(x, kernels):
    """Each picture with its own kernel; borders mirror."""
    count, channels, height, width = x.shape
    reach = kernels.shape[1] // 2
    padded = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * reach, width + 2 * reach)
    each = kernels.repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded, each, groups=count * channels).reshape(count, channels, height, width)


@functools.lru_cache(maxsize=8)
def _jpeg_constants(device):
    k, n = np.mgrid[:8, :8]
    dct = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos((2 * n + 1) * k * np.pi / 16)
    tables = np.array([_LUMA_TABLE, _CHROMA_TABLE, _CHROMA_TABLE], np.float32).reshape(3, 8, 8)
    to_ycc = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return tuple(torch.tensor(np.asarray(a), dtype=torch.float32, device=device) for a in (dct, tables, to_ycc, np.linalg.inv(to_ycc)))


def _quantise(plane, table, dct):
    """count x height x width, multiples of 8, through the quantised DCT; table: count x 8 x 8."""
    count, height, width = plane.shape
    block = plane.reshape(count, height // 8, 8, width // 8, 8).permute(0, 1, 3, 2, 4)
    table = table[:, None, None]
    block = torch.round(dct @ block @ dct.T / table) * table
    block = dct.T @ block @ dct
    return block.permute(0, 1, 3, 2, 4).reshape(count, height, width)


def jpeg(x, quality, half_chroma=False):
    """What JPEG of the given quality (count, 1..100) leaves of x: the arithmetic of the standard without its entropy coding.

    One channel is coded as grey. The grid begins at the top left; sides must be multiples of 16."""
    dct, tables, to_ycc, to_rgb = _jpeg_constants(x.device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = ((tables[None] * scale[:, None, None, None] + 50) / 100).floor().clamp(1, 255)
    if x.shape[1] == 1:
        return rounded(_quantise(x[:, 0] - 128, table[:, 0], dct)[:, None] + 128)
    ycc = torch.einsum("kc,ncij->nkij", to_ycc, x)
    planes = [_quantise(ycc[:, 0] - 128, table[:, 0], dct) + 128]
    for c in (1, 2):
        plane = F.avg_pool2d(ycc[:, c : c + 1], 2)[:, 0] if half_chroma else ycc[:, c]
        plane = _quantise(plane.round(), table[:, c], dct)
        if half_chroma:
            plane = F.interpolate(plane[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        planes.append(plane)
    return rounded(torch.einsum("kc,ncij->nkij", to_rgb, torch.stack(planes, dim=1)))


def uniform(random, low, high, count, device):
    return torch.from_numpy(random.uniform(low, high, count).astype(np.float32)).to(device)


def some(random, chance, count, device):
    """count x 1 x 1 x 1 booleans, each true with the chance."""
    return torch.from_numpy(random.random((count, 1, 1, 1)) < chance).to(device)


def any_blur(x, random, strongest):
    """Gaussian (round or elliptic), out of focus, or moved: one kind for a batch, its strength per picture, from hardly any on."""
    count, device, kind = x.shape[0], x.device, random.random()
    strength, angle = uniform(random, 0.2, strongest, count, device), uniform(random, 0, np.pi, count, device)
    size = int(2 * np.ceil(2.5 * strongest) + 1)
    if kind < 0.7:
        return blur(x, gaussian(strength, size, uniform(random, 0.4, 1, count, device), angle))
    if kind < 0.85:
        return blur(x, disk(strength * 1.3, size))
    return blur(x, line(strength * 3, angle, size))


def for_photo(x, scale, random, noise):
    """A photo of real life, scale times smaller: blurred, shrunk, noisy, and mostly a JPEG. x: count x 1, sides multiples of 16 x scale."""
    count, device = x.shape[0], x.device
    x = torch.where(some(random, 0.8, count, device), any_blur(x, random, 0.75 * scale), x)
    x = shrink(x, scale) if random.random() < 0.7 else F.avg_pool2d(x, scale)
    x = add_noise(x, uniform(random, 0, 12, count, device) * (uniform(random, 0, 1, count, device) < 0.7), noise)
    x = rounded(x)
    coded = jpeg(x, uniform(random, 35, 96, count, device).round())
    return torch.where(some(random, 0.8, count, device), coded, x)


def for_denoise(x, random, noise):
    """Sigma 0 to 55, unknown to the net; mostly white, one batch in five as from a camera; one picture in ten all but clean."""
    count, device = x.shape[0], x.device
    sigma = uniform(random, 0, 55, count, device)
    sigma = torch.where(uniform(random, 0, 1, count, device) < 0.1, sigma / 30, sigma)
    if random.random() < 0.2:
        return rounded(camera_noise(x, sigma * 0.6, noise, random))
    return rounded(add_noise(x, sigma, noise))


def for_restore(x, random, noise):
    """Old and much-forwarded pictures: JPEG of any quality, some noise before it, now and then softness. Sides multiples of 16."""
    count, device = x.shape[0], x.device
    x = torch.where(some(random, 0.15, count, device), any_blur(x, random, 1.0), x)
    x = torch.where(some(random, 0.3, count, device), add_noise(x, uniform(random, 0, 15, count, device), noise), x)
    coded = jpeg(rounded(x), uniform(random, 8, 96, count, device).round(), half_chroma=random.random() < 0.6)
    return torch.where(some(random, 0.95, count, device), coded, rounded(x))


def for_deblur(x, random, noise):
    """Soft pictures with the little noise of daylight; one in ten is sharp and must stay as it is."""
    count, device = x.shape[0], x.device
    x = torch.where(some(random, 0.9, count, device), any_blur(x, random, 2.4), x)
    return rounded(add_noise(x, uniform(random, 0, 3, count, device), noise))
