"""Street photos of one person with masks, composed anew for every batch.

The set shows whole bodies before streets; what is asked of us is also faces, half bodies and other places. So people are
cut out, enlarged, turned, mirrored and cropped, put before photos without people in them and drawn pictures, alone or in
twos, lit anew, blurred and spoilt; some batches keep the photo's own background, whose borders are real.
"""

import hashlib
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from training import degrade, images, pictures, synth

SIDE = 384  # of the square that every picture and mask lies in


def _square(array, mode):
    """A height x width array in the middle of a SIDE x SIDE one, its edge repeated or zero around it."""
    height, width = array.shape[:2]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    around = ((top, SIDE - height - top), (left, SIDE - width - left)) + ((0, 0),) * (array.ndim - 2)
    return np.pad(array, around, mode=mode)


def read(folder):
    """[(path of the photo, path of its mask)] in a fixed order."""
    photos = images.paths(folder, "train/people/img")
    masks = [os.path.join(folder, "train/people/mask", os.path.splitext(os.path.basename(p))[0] + ".png") for p in photos]
    return [pair for pair in zip(photos, masks) if os.path.exists(pair[1])]


def load(pair):
    with Image.open(pair[1]) as mask:
        return images.read_rgb(pair[0]), np.asarray(mask.convert("L")) > 127


class Scenes:
    def __init__(self, folder, cache, device="cpu", limit=0):
        pairs, held = pictures.split(read(folder), len(read(folder)) // 10, seed=11)
        pairs, held = (pairs[:limit], held[:8]) if limit else (pairs, held)
        self.held = [load(p) for p in held]
        grounds = pictures.split(images.paths(folder, "train/bsds400"), pictures.HELD_OUT)[0]
        grounds = grounds[:limit] if limit else grounds
        key = hashlib.sha256("|".join(os.path.basename(p) for p in [q[0] for q in pairs] + grounds).encode()).hexdigest()[:16]
        base = os.path.join(cache, f"people-{key}.npz")
        if not os.path.exists(base):
            self._decode(base, pairs, grounds)
        stored = np.load(base)
        self.people, self.masks, self.grounds = (torch.from_numpy(stored[k]).to(device) for k in ("people", "masks", "grounds"))
        self.device = device

    def _decode(self, base, pairs, grounds):
        os.makedirs(os.path.dirname(base), exist_ok=True)
        loaded = [load(p) for p in pairs]
        behind = []
        for path in grounds:
            picture = images.read_rgb(path)
            behind.append(np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.BICUBIC)))
        for i in range(max(4, len(grounds) // 4)):
            behind.append(synth.draw(synth.KINDS[i % len(synth.KINDS)], SIDE, np.random.default_rng((13, i))))
        mine = f"{base}.{os.getpid()}.npz"
        np.savez(
            mine,
            people=np.stack([_square(p, "edge").transpose(2, 0, 1) for p, _ in loaded]),
            masks=np.stack([_square(m.astype(np.uint8) * 255, "constant")[None] for _, m in loaded]),
            grounds=np.stack([b.transpose(2, 0, 1) for b in behind]),
        )
        os.replace(mine, base)

    def _grid(self, random, count, side, zoom, shift):
        """Where count x side x side pixels come from in a SIDE x SIDE square: turned a little, mirrored, enlarged, moved."""
        angle = random.normal(0, 0.12, count)
        mirror = np.where(random.random(count) < 0.5, -1.0, 1.0)
        c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
        matrix = np.stack([np.stack([c * mirror, -s, shift[0]], 1), np.stack([s * mirror, c, shift[1]], 1)], 1)
        return F.affine_grid(torch.from_numpy(matrix.astype(np.float32)).to(self.device), (count, 1, side, side), align_corners=False)

    def _person(self, random, count, side):
        """(pixels in 0..255, mask in 0..1) of people: whole, half, or the head alone."""
        which = torch.from_numpy(random.integers(0, len(self.people), count)).to(self.device)
        zoom = np.exp(random.uniform(np.log(0.6), np.log(3.5), count))
        # A close look goes to the upper part of the body more often than to its feet.
        reach = np.clip(1 - 1 / zoom, 0.1, 1)
        shift = np.stack([random.normal(0, 0.15, count), random.uniform(-0.85, 0.5, count) * reach])
        grid = self._grid(random, count, side, zoom, shift)
        pixels = F.grid_sample(self.people[which].float(), grid, padding_mode="border", align_corners=False)
        return pixels, F.grid_sample(self.masks[which].float() / 255, grid, padding_mode="zeros", align_corners=False)

    def _ground(self, random, count, side):
        which = torch.from_numpy(random.integers(0, len(self.grounds), count)).to(self.device)
        grid = self._grid(random, count, side, np.exp(random.uniform(0, 1, count)), random.uniform(-0.3, 0.3, (2, count)))
        behind = self._lit(random, F.grid_sample(self.grounds[which].float(), grid, padding_mode="reflection", align_corners=False), count)
        return degrade.any_blur(behind, random, 3.0) if random.random() < 0.5 else behind

    def batch(self, random, noise, count, side):
        """(count x 3 x side x side in 0..1, count x 1 x side x side of 0 and 1)."""
        pixels, mask = self._person(random, count, side)
        if random.random() < 0.6:
            behind = self._ground(random, count, side)
            # The masks are hard and 2 to 4 pixels rough: a soft edge hides the seam that would betray the person.
            soft = degrade.blur(mask, degrade.gaussian(degrade.uniform(random, 0.5, 1.5, count, self.device), 9))
            if random.random() < 0.3:
                other, second = self._person(random, count, side)
                behind, mask = torch.lerp(behind, other, second), torch.maximum(mask, second)
            pixels = torch.lerp(behind, pixels, soft)
        return self._spoilt(random, noise, pixels, count) / 255, (mask > 0.5).float()

    def _lit(self, random, x, count):
        """Other light: gain, colour, contrast."""
        gain = degrade.uniform(random, 0.6, 1.4, count, self.device)[:, None, None, None]
        tint = torch.from_numpy(random.normal(1, 0.08, (count, 3, 1, 1)).astype(np.float32)).to(self.device)
        gamma = degrade.uniform(random, 0.7, 1.4, count, self.device)[:, None, None, None]
        return 255 * ((x / 255).clamp(0, 1) ** gamma * gain * tint).clamp(0, 1)

    def _spoilt(self, random, noise, x, count):
        x = self._lit(random, x, count)
        if random.random() < 0.3:
            x = x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        if random.random() < 0.3:
            x = degrade.any_blur(x, random, 1.5)
        x = degrade.rounded(degrade.add_noise(x, degrade.uniform(random, 0, 10, count, self.device), noise))
        return degrade.jpeg(x, degrade.uniform(random, 30, 95, count, self.device).round()) if random.random() < 0.5 else x


def iou(net, picture, mask, side):
    """Of the mask at the picture's own size, the picture resized to side x side for the net, as the engine does."""
    small = np.asarray(Image.fromarray(picture).resize((side, side), Image.BILINEAR), np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        out = net(torch.from_numpy(small)[None].to(next(net.parameters()).device) / 255).sigmoid().cpu()
    found = F.interpolate(out, size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy() > 0.5
    either = (found | mask).sum()
    return float((found & mask).sum() / either) if either else 1.0
