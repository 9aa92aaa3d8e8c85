"""The training pictures, decoded once into one flat buffer, and random patches of them.

The buffer is a memory map on a CPU and lies in the GPU's memory on a GPU; a batch is one gather, so that the accelerator
does not wait for Python. What a patch is drawn by depends on the seed and the step alone: a training that resumes goes on
with the patches it would have had.
"""

import hashlib
import json
import os

import numpy as np
import torch

from training import images, synth

SIZES = (1.0, 0.8, 0.65, 0.5)  # of the photo: more pictures, and cleaner ones, since shrinking removes JPEG's traces
HELD_OUT = 10  # photos of bsds400 that choose the checkpoint; they are never trained on
BLOCK, STRIDE = 64, 16  # pixels: places that patches are drawn around
ADJUST = 24  # pixels that a patch lies away from its place, at most


def split(every, count, seed=5):
    """(trained on, held out): count of the pictures set aside by a fixed seed."""
    chosen = set(np.random.default_rng(seed).permutation(len(every))[:count].tolist())
    return [p for i, p in enumerate(every) if i not in chosen], [p for i, p in enumerate(every) if i in chosen]


class Store:
    """The photos of bsds400 and sunhays80 at several sizes, and `drawn` pictures of our own, RGB."""

    def __init__(self, folder, cache, drawn=0, device="cpu", limit=0):
        """limit: use only so many photos, for a smoke test."""
        bsds, held = split(images.paths(folder, "train/bsds400"), HELD_OUT)
        files = bsds + images.paths(folder, "train/sunhays80")
        files = files[:: max(1, len(files) // limit)][:limit] if limit else files
        self.held = [images.read_rgb(p) for p in held]
        named = [os.path.relpath(p, folder) for p in files]
        key = hashlib.sha256(json.dumps([named, SIZES, drawn, BLOCK, STRIDE]).encode()).hexdigest()[:16]
        base = os.path.join(cache, f"pictures-{key}")
        if not os.path.exists(base + ".npz"):
            build(base, files, drawn)
        index = np.load(base + ".npz")
        self.sizes, self.blocks, self.weights = index["pictures"], index["blocks"], index["weights"]
        self.pixels = np.asarray(np.memmap(base + ".bin", np.uint8, "r")).reshape(-1, 3)
        self.device, self.chances = device, {}
        if device != "cpu":
            self.buffer = torch.from_numpy(np.array(self.pixels)).to(device)

    def _chance(self, side):
        """Blocks of the pictures that are at least side pixels high and wide, and their cumulative chance."""
        if side not in self.chances:
            fits = np.flatnonzero(self.sizes[self.blocks[:, 0], 1:].min(axis=1) >= side)
            if not len(fits):
                raise ValueError(f"no picture has {side} x {side} pixels")
            chance = np.cumsum(self.weights[fits], dtype=np.float64)
            self.chances[side] = fits, chance / chance[-1]
        return self.chances[side]

    def batch(self, random, count, side):
        """float32 0..255, count x 3 x side x side, each flipped and turned at random."""
        fits, chance = self._chance(side)
        blocks = self.blocks[fits[np.searchsorted(chance, random.random(count))]]
        offset, height, width = self.sizes[blocks[:, 0]].T
        near = BLOCK // 2 - side // 2 + random.integers(-ADJUST, ADJUST + 1, (2, count))
        top = np.clip(blocks[:, 1] + near[0], 0, height - side)
        left = np.clip(blocks[:, 2] + near[1], 0, width - side)
        turn = random.integers(0, 2, (count, 3)).astype(bool)
        cut = self._cut if self.device == "cpu" else self._gather
        return cut(offset, width, top, left, turn, side).permute(0, 3, 1, 2).float()

    def _cut(self, offset, width, top, left, turn, side):
        """Patches by slicing, for the CPU."""
        cut = np.empty((len(offset), side, side, 3), np.uint8)
        for i in range(len(offset)):
            rows = self.pixels[offset[i] + top[i] * width[i] : offset[i] + (top[i] + side) * width[i]]
            patch = rows.reshape(side, width[i], 3)[:, left[i] : left[i] + side]
            patch = patch[::-1] if turn[i, 0] else patch
            patch = patch[:, ::-1] if turn[i, 1] else patch
            cut[i] = patch.transpose(1, 0, 2) if turn[i, 2] else patch
        return torch.from_numpy(cut)

    def _gather(self, offset, width, top, left, turn, side):
        """The same patches in a few kernels, for a GPU."""
        first, row, turn = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in (offset + top * width + left, width, turn))
        along = torch.arange(side, device=self.device)
        patch = self.buffer[first[:, None, None] + along[None, :, None] * row[:, None, None] + along[None, None, :]]
        turn = turn[:, :, None, None, None]
        patch = torch.where(turn[:, 0], patch.flip(1), patch)
        patch = torch.where(turn[:, 1], patch.flip(2), patch)
        return torch.where(turn[:, 2], patch.transpose(1, 2), patch)


def build(base, files, drawn):
    """Decodes and shrinks every photo, draws the drawn pictures, and weighs their blocks."""
    os.makedirs(os.path.dirname(base), exist_ok=True)
    pictures, blocks, weights, offset = [], [], [], 0
    # Two trainings may build at once: each writes its own file, and the last to rename wins with the same bytes.
    mine = f"{base}.{os.getpid()}"
    with open(mine + ".bin", "wb") as f:
        for picture in every_picture(files, drawn):
            top, left, weight = weigh(picture)
            blocks.append(np.stack([np.full_like(top, len(pictures)), top, left], axis=1))
            weights.append(weight)
            f.write(np.ascontiguousarray(picture).tobytes())
            pictures.append((offset, picture.shape[0], picture.shape[1]))
            offset += picture.shape[0] * picture.shape[1]
    np.savez(mine + ".npz", pictures=np.array(pictures), blocks=np.concatenate(blocks), weights=np.concatenate(weights).astype(np.float32))
    os.replace(mine + ".bin", base + ".bin")
    os.replace(mine + ".npz", base + ".npz")


def every_picture(files, drawn):
    for path in files:
        whole = images.read_rgb(path)
        for size in SIZES:
            height, width = round(whole.shape[0] * size), round(whole.shape[1] * size)
            if min(height, width) >= BLOCK:
                yield whole if size == 1.0 else images.to_uint8(images.resize(whole, height, width))
    for i in range(drawn):
        yield synth.draw(synth.KINDS[i % len(synth.KINDS)], 288, np.random.default_rng((7, i)))


def weigh(picture):
    """(top, left, weight) of blocks. Where bicubic errs more, a block is drawn more often, by the square root of its mean
    error, so that flat sky is rarer."""
    luma = images.luma(picture)
    height, width = luma.shape
    error = np.abs(luma - images.resize(images.resize(luma, height // 2, width // 2), height, width))
    total = np.pad(error.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    top, left = np.arange(0, height - BLOCK + 1, STRIDE)[:, None], np.arange(0, width - BLOCK + 1, STRIDE)[None, :]
    bottom, right = top + BLOCK, left + BLOCK
    mean = (total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]) / BLOCK**2
    return [(a.ravel()) for a in np.broadcast_arrays(top, left, np.sqrt(np.maximum(mean, 0.02)))]
