"""What each kind of net learns from, and what it is scored by. A task gives batches that depend on seed and step alone."""

import numpy as np
import torch
import torch.nn.functional as F

from training import degrade, images, nets, people, pictures


def _random(recipe, step, device):
    """A numpy generator for choices and a torch one, on the device, for noise."""
    noise = torch.Generator(device)
    noise.manual_seed(recipe.seed * 1_000_003 + step)
    return np.random.default_rng((recipe.seed, step)), noise


def tensor(picture):
    """1 x channels x height x width of a height x width (x 3) array."""
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes, np.float32))[None]


def through(net, given):
    """The first picture that a net makes of float values in 0..1, in 0..255 and not clipped; computed where the net is."""
    place = next((p.device for p in net.parameters()), given.device)
    with torch.no_grad():
        return net(given.to(place))[0].float().cpu().numpy() * 255


def _middle(picture, side):
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def difference(out, wanted, squared):
    error = out - wanted
    return (error**2).mean() if squared else error.abs().mean()


class Enlarging:
    """Luma super-resolution: from MATLAB's bicubic, or, with photo, from what cameras and messengers make of pictures."""

    def __init__(self, recipe, folder, cache, device="cpu", limit=0):
        self.recipe, self.device, self.scale = recipe, device, recipe.net["scale"]
        self.photo = recipe.options.get("photo", False)
        self.store = pictures.Store(folder, cache, recipe.options.get("drawn", 0), device, limit)
        self.loss = difference

    def net(self):
        return nets.Enlarge(**self.recipe.net)

    def _shrunk(self, high, random, noise):
        return degrade.for_photo(high, self.scale, random, noise) if self.photo else degrade.rounded(degrade.shrink(high, self.scale))

    def batch(self, step):
        random, noise = _random(self.recipe, step, self.device)
        # More low-resolution pixels on each side, so that neither the resize nor JPEG's grid sees the patch's border.
        side, edge = self.recipe.patch, 8 if self.photo else 2
        high = degrade.luma(self.store.batch(random, self.recipe.batch, (side + 2 * edge) * self.scale))
        low = self._shrunk(high, random, noise)
        top, left = (edge + int(v) for v in random.integers(-3, 4, 2)) if self.photo else (edge, edge)
        y, x, large = top * self.scale, left * self.scale, side * self.scale
        return low[:, :, top : top + side, left : left + side] / 255, high[:, :, y : y + large, x : x + large] / 255

    def validate(self, net):
        """Mean Y PSNR over the photos held out, the border cropped by the scale."""
        scores = []
        for i, picture in enumerate(self.store.held):
            high = tensor(images.luma(images.crop_to_multiple(picture, 16 * self.scale)))
            random, noise = _random(self.recipe, -1 - i + 1_000_000_000, "cpu")
            low = self._shrunk(high, random, noise)
            out = through(net, low / 255)[0]
            scores.append(images.psnr(np.clip(out, 0, 255), high[0, 0].numpy(), self.scale))
        return float(np.mean(scores))


class Cleaning:
    """Colour to colour of the same size; the recipe's option `from` names the function of degrade.py that spoils the picture."""

    def __init__(self, recipe, folder, cache, device="cpu", limit=0):
        self.recipe, self.device = recipe, device
        self.spoil = getattr(degrade, recipe.options["from"])
        self.store = pictures.Store(folder, cache, recipe.options.get("drawn", 0), device, limit)
        self.loss = difference

    def net(self):
        return nets.Clean(**self.recipe.net)

    def batch(self, step):
        random, noise = _random(self.recipe, step, self.device)
        side = self.recipe.patch
        clean = self.store.batch(random, self.recipe.batch, side + 16)
        spoilt = self.spoil(clean, random, noise)
        top, left = (int(v) for v in random.integers(0, 17, 2))
        part = np.s_[:, :, top : top + side, left : left + side]
        return spoilt[part] / 255, clean[part] / 255

    def validate(self, net, least=0):
        """Mean colour PSNR over the middles of the photos held out, each spoilt in fixed ways, from the least of them on."""
        scores = []
        for i, picture in enumerate(self.store.held):
            clean = tensor(_middle(picture, 192))
            for spoilt in spoilt_variants(self.recipe.options["from"], clean, i)[least:]:
                out = through(net, spoilt / 255)
                # A clean picture that stays clean scores 48 dB at most, so that it does not outweigh the others.
                scores.append(min(48.0, images.psnr(np.clip(out, 0, 255), clean[0].numpy())))
        return float(np.mean(scores))


def spoilt_variants(kind, clean, seed):
    """The fixed ways a held-out picture is spoilt in, from hardly to badly."""
    noise = torch.Generator().manual_seed(seed)

    def one(value):
        return torch.tensor([float(value)])

    if kind == "for_denoise":
        return [degrade.rounded(degrade.add_noise(clean, one(s), noise)) for s in (0, 15, 25, 50)]
    if kind == "for_restore":
        return [degrade.jpeg(clean, one(q), half_chroma=True) for q in (90, 40, 20, 10)]
    return [degrade.rounded(degrade.blur(clean, degrade.gaussian(one(s), 13))) for s in (0.3, 0.8, 1.2, 1.8)]


class Masking:
    """People cut out and put before other backgrounds."""

    def __init__(self, recipe, folder, cache, device="cpu", limit=0):
        self.recipe, self.device = recipe, device
        self.scenes = people.Scenes(folder, cache, device, limit)

    def net(self):
        return nets.Subject()

    def batch(self, step):
        random, noise = _random(self.recipe, step, self.device)
        # The whole picture is always seen, every other time at a coarser look: that costs a third, and what it teaches holds.
        side = self.recipe.patch if step % 2 else min(self.recipe.options.get("coarse", self.recipe.patch), self.recipe.patch)
        return self.scenes.batch(random, noise, self.recipe.batch, side)

    def loss(self, out, wanted, squared):
        """Cross entropy and Dice in equal parts: the one for every pixel, the other for the whole."""
        out = out.float()
        chance = out.sigmoid()
        both, sum_ = (chance * wanted).sum(dim=(1, 2, 3)), (chance + wanted).sum(dim=(1, 2, 3))
        return F.binary_cross_entropy_with_logits(out, wanted) + (1 - (2 * both + 1) / (sum_ + 1)).mean()

    def validate(self, net):
        """Mean IoU, in per cent, over the pictures set aside, as they are."""
        return 100 * float(np.mean([people.iou(net, picture, mask, self.recipe.side) for picture, mask in self.scenes.held]))
