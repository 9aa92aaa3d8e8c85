"""Super-resolution pairs: every photo at several sizes, its low-resolution twin, and random patches of both.

All pictures are decoded and shrunk once, into one flat uint8 file of luma; a training then reads it through a memory map.
"""

import hashlib
import json
import os

import numpy as np
import torch

from training import images

SIZES = (1.0, 0.8, 0.65, 0.5)  # of the photo: more pictures, and cleaner ones, since shrinking removes JPEG's traces
HELD_OUT = 10  # photos of bsds400 that choose the checkpoint; they are never trained on


def split(every, count, seed=5):
    """(trained on, held out): count of the pictures set aside by a fixed seed."""
    chosen = set(np.random.default_rng(seed).permutation(len(every))[:count].tolist())
    return [p for i, p in enumerate(every) if i not in chosen], [p for i, p in enumerate(every) if i in chosen]


class Pairs:
    """High and low resolution luma of every photo and size, cut from one buffer."""

    def __init__(self, folder, scale, cache, extra=()):
        """extra: arrays of luma (uint8), for instance drawn ones, added as they are."""
        self.scale = scale
        bsds, held = split(images.paths(folder, "train/bsds400"), HELD_OUT)
        self.files = bsds + images.paths(folder, "train/sunhays80")
        self.held = [images.crop_to_multiple(images.luma(images.read_rgb(p)), scale) for p in held]
        key = hashlib.sha256(json.dumps([self.files, scale, SIZES, len(extra)]).encode()).hexdigest()[:16]
        base = os.path.join(cache, f"pairs-x{scale}-{key}")
        if not os.path.exists(base + ".json"):
            self._decode(base, extra)
        with open(base + ".json") as f:
            index = json.load(f)
        buffer = np.memmap(base + ".bin", np.uint8, "r")
        self.high, self.low = [], []
        for offset, height, width in index["pictures"]:
            size = height * width * scale * scale
            self.high.append(buffer[offset : offset + size].reshape(height * scale, width * scale))
            self.low.append(buffer[offset + size : offset + size + height * width].reshape(height, width))
        self.blocks = np.array(index["blocks"], np.int32)  # picture, top, left
        self.chance = np.cumsum(np.array(index["weights"], np.float64))
        self.chance /= self.chance[-1]

    BLOCK, STRIDE = 32, 8  # of low-resolution pixels

    def _decode(self, base, extra):
        os.makedirs(os.path.dirname(base), exist_ok=True)
        pictures, blocks, weights, offset = [], [], [], 0
        with open(base + ".bin", "wb") as f:
            for high in self._every_high(extra):
                high = images.crop_to_multiple(high, self.scale)
                height, width = high.shape[0] // self.scale, high.shape[1] // self.scale
                if min(height, width) < self.BLOCK:
                    continue
                low = images.to_uint8(images.resize(high, height, width))
                f.write(high.tobytes())
                f.write(low.tobytes())
                for top, left, weight in self._block_weights(high, low):
                    blocks.append((len(pictures), top, left))
                    weights.append(round(weight, 4))
                pictures.append((offset, height, width))
                offset += high.size + low.size
        with open(base + ".json.new", "w") as f:
            json.dump({"pictures": pictures, "blocks": blocks, "weights": weights}, f)
        os.replace(base + ".json.new", base + ".json")

    def _every_high(self, extra):
        for path in self.files:
            whole = images.luma(images.read_rgb(path))
            for size in SIZES:
                height, width = round(whole.shape[0] * size), round(whole.shape[1] * size)
                yield images.to_uint8(whole if size == 1.0 else images.resize(whole, height, width))
        yield from extra

    def _block_weights(self, high, low):
        """Blocks where bicubic errs are drawn more often: by the square root of its mean error, so that flat sky is rarer."""
        error = np.abs(high - images.resize(low, *high.shape))
        total = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        side = self.BLOCK * self.scale
        for top in range(0, low.shape[0] - self.BLOCK + 1, self.STRIDE):
            for left in range(0, low.shape[1] - self.BLOCK + 1, self.STRIDE):
                y, x = top * self.scale, left * self.scale
                mean = (total[y + side, x + side] - total[y, x + side] - total[y + side, x] + total[y, x]) / side**2
                yield top, left, float(np.sqrt(max(mean, 0.02)))

    def batch(self, random, count, size):
        """(low, high) float32 in 0..1, count x 1 x size x size and scale times that, each flipped and turned at random."""
        scale = self.scale
        low = np.empty((count, 1, size, size), np.uint8)
        high = np.empty((count, 1, size * scale, size * scale), np.uint8)
        for i, block in enumerate(self.blocks[np.searchsorted(self.chance, random.random(count))]):
            whole = self.low[block[0]]
            top = min(max(block[1] + int(random.integers(-self.STRIDE // 2, self.STRIDE // 2 + 1)), 0), whole.shape[0] - size)
            left = min(max(block[2] + int(random.integers(-self.STRIDE // 2, self.STRIDE // 2 + 1)), 0), whole.shape[1] - size)
            a = whole[top : top + size, left : left + size]
            b = self.high[block[0]][top * scale : (top + size) * scale, left * scale : (left + size) * scale]
            turn = int(random.integers(8))
            if turn & 1:
                a, b = a[::-1], b[::-1]
            if turn & 2:
                a, b = a[:, ::-1], b[:, ::-1]
            if turn & 4:
                a, b = a.T, b.T
            low[i, 0], high[i, 0] = a, b
        return torch.from_numpy(low).float().div_(255), torch.from_numpy(high).float().div_(255)

    def validate(self, net):
        """Mean Y PSNR over the photos held out, the border cropped by the scale."""
        scores = []
        for high in self.held:
            low = images.to_uint8(images.resize(high, high.shape[0] // self.scale, high.shape[1] // self.scale))
            with torch.no_grad():
                out = net(torch.from_numpy(low).float().div_(255)[None, None])[0, 0].numpy()
            scores.append(images.psnr(np.clip(out * 255, 0, 255), high, self.scale))
        return float(np.mean(scores))
