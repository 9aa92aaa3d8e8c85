"""Pictures on disk to arrays: decoding, MATLAB's luma and MATLAB's antialiased bicubic resize, PSNR and SSIM.

MATLAB's `rgb2ycbcr` and `imresize` are what the published super-resolution scores are made with, so they are what
we train and measure with. Both are written here from their definitions and checked against the low-resolution files of
Set5 by `python3 -m training.evaluate resize` (at least 50 dB).
"""

import functools
import glob
import os

import numpy as np
from PIL import Image

# ITU-R BT.601, studio range: what MATLAB's rgb2ycbcr computes. Row 0 gives Y from RGB in 0..255.
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255.0
_YCBCR_OFFSET = np.array([16.0, 128.0, 128.0])


def data_folder(given=None):
    """The folder that holds `train` and `bench`: the one given, else the nearest `shared/data` above this file."""
    if given:
        return given
    at = os.path.dirname(os.path.abspath(__file__))
    while True:
        candidate = os.path.join(at, "shared", "data")
        if os.path.isdir(candidate):
            return candidate
        parent = os.path.dirname(at)
        if parent == at:
            raise FileNotFoundError("no shared/data above training/: name the folder of the pictures with --data DIR")
        at = parent


def paths(folder, *sets):
    """Every picture of the named sets below folder, in a fixed order."""
    found = []
    for name in sets:
        for extension in ("jpg", "png", "bmp"):
            found += glob.glob(os.path.join(folder, name, "*." + extension))
    if not found:
        raise FileNotFoundError(f"no picture in {[os.path.join(folder, s) for s in sets]}")
    return sorted(found)


def read_rgb(path):
    """uint8 height x width x 3."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def luma(rgb):
    """float32 Y in 16..235 of RGB in 0..255, not rounded."""
    return (rgb.astype(np.float32) @ _YCBCR[0].astype(np.float32)) + 16.0


def ycbcr(rgb):
    """float32 height x width x 3, studio range."""
    return (rgb.astype(np.float32) @ _YCBCR.T.astype(np.float32)) + _YCBCR_OFFSET.astype(np.float32)


def to_uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cubic(x):
    """Keys' cubic with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@functools.lru_cache(maxsize=4096)
def _taps(size_in, size_out):
    """(taps, weights) of imresize, each size_out x reach: when it shrinks, the kernel widens by the ratio; borders mirror."""
    scale = size_out / size_in
    stretch = min(scale, 1.0)
    centre = (np.arange(size_out) + 0.5) / scale - 0.5
    reach = int(np.ceil(4.0 / stretch)) + 1
    taps = np.floor(centre - 2.0 / stretch).astype(int)[:, None] + 1 + np.arange(reach)[None, :]
    weights = stretch * _cubic(stretch * (centre[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.mod(taps, 2 * size_in)
    return np.where(mirrored < size_in, mirrored, 2 * size_in - 1 - mirrored), weights.astype(np.float32)


def matrix(size_in, size_out):
    """The same as a size_out x size_in matrix, for many small pictures at once."""
    taps, weights = _taps(size_in, size_out)
    whole = np.zeros((size_out, size_in), np.float32)
    np.add.at(whole, (np.arange(size_out)[:, None], taps), weights)
    return whole


def resize(picture, height, width):
    """MATLAB's imresize(picture, [height width], 'bicubic') of a float or uint8 array, as float32, not rounded."""
    picture = picture.astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        taps, weights = _taps(picture.shape[axis], size)
        shape = [1] * picture.ndim
        shape[axis] = size
        picture = sum(np.take(picture, taps[:, i], axis) * weights[:, i].reshape(shape) for i in range(taps.shape[1]))
    return picture


def crop_to_multiple(picture, multiple):
    height, width = picture.shape[:2]
    return picture[: height - height % multiple, : width - width % multiple]


def psnr(a, b, border=0):
    """dB between two arrays in 0..255, the border (pixels on each side) left out."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if border:
        a, b = a[border:-border, border:-border], b[border:-border, border:-border]
    error = np.mean((a - b) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255.0**2 / error)


def ssim(a, b, border=0):
    """Wang et al. 2004: 11x11 Gaussian of sigma 1.5, valid part only; 0..255, one channel."""
    from scipy.ndimage import correlate1d

    a, b = a.astype(np.float64), b.astype(np.float64)
    if border:
        a, b = a[border:-border, border:-border], b[border:-border, border:-border]
    kernel = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def blur(x):
        return correlate1d(correlate1d(x, kernel, axis=0), kernel, axis=1)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))
