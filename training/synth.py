"""Pictures drawn by rule, for what photos of nature lack: text, line art, smooth gradients, screens; and dead leaves.

Dead leaves (Matheron 1968; Lee, Mumford and Huang 2001): shapes that cover each other, with radii of a power law of
exponent -3, have the statistics of natural pictures: scale invariance, edges, occlusion. Ours have colours walked around
a palette, and textures of 1/f noise.
"""

import functools
import glob
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

KINDS = ("leaves", "text", "lines", "leaves", "gradient", "screen")


def draw(kind, side, random):
    """uint8 side x side x 3 of the kind, from numpy's generator."""
    return {"leaves": leaves, "text": text, "lines": lines, "gradient": gradient, "screen": screen}[kind](side, random)


def cloud(side, random, slope=1.0):
    """float32 side x side of mean 0 and deviation 1 whose amplitude falls as 1 / frequency^slope."""
    y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    frequency = np.hypot(y, x)
    frequency[0, 0] = 1
    spectrum = (random.standard_normal(frequency.shape) + 1j * random.standard_normal(frequency.shape)) / frequency**slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(side, side))
    return (field / field.std()).astype(np.float32)


def colour(random):
    """Mostly muted, now and then strong, as in photos."""
    grey = random.uniform(15, 240)
    return np.clip(grey + random.normal(0, 12 if random.random() < 0.75 else 60, 3), 0, 255)


def _shape(pen, x, y, radius, random, fill):
    kind = random.random()
    if kind < 0.4:
        flat = random.uniform(0.4, 1)
        pen.ellipse((x - radius, y - radius * flat, x + radius, y + radius * flat), fill=fill)
        return
    corners = int(random.integers(3, 8))
    turn = np.sort(random.uniform(0, 2 * np.pi, corners)) if kind < 0.8 else np.arange(4) * np.pi / 2 + random.uniform(0, np.pi)
    reach = radius * (random.uniform(0.6, 1, len(turn)) if kind < 0.8 else random.uniform(0.3, 1, 2)[[0, 1, 0, 1]])
    pen.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for r, t in zip(reach, turn)], fill=fill)


def leaves(side, random):
    """Drawn at twice the size and shrunk, so that edges are as soft as a lens leaves them."""
    large = side * 2
    picture = np.zeros((large, large, 3), np.float32) + colour(random)
    textures = [np.array(Image.fromarray(cloud(side, random, random.uniform(0.4, 1.6))).resize((large, large), Image.BICUBIC)) for _ in range(3)]
    least, most = 10.0, large / 2.5
    shapes = int(random.integers(500, 1200))
    # The inverse of the distribution of radii with density r^-3 between least and most.
    radii = least / np.sqrt(1 - random.random(shapes) * (1 - (least / most) ** 2))
    # The largest first would leave nothing hidden; half of the order is chance.
    order = np.argsort(-radii * random.uniform(0.3, 1, shapes))
    for radius in radii[order]:
        x, y = random.uniform(-radius / 2, large + radius / 2, 2)
        box = [int(max(0, x - radius)), int(max(0, y - radius)), int(min(large, x + radius + 1)), int(min(large, y + radius + 1))]
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        _shape(ImageDraw.Draw(mask), x - box[0], y - box[1], radius, random, 255)
        part = np.s_[box[1] : box[3], box[0] : box[2]]
        texture = textures[int(random.integers(3))][part][..., None] * random.choice([0, 3, 8, 20])
        shade = np.linspace(-1, 1, box[3] - box[1])[:, None, None] * random.normal(0, 10)
        picture[part] = np.where(np.array(mask)[..., None] > 0, colour(random) + texture + shade, picture[part])
    return shrunk(picture, side)


def shrunk(picture, side):
    whole = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)) if isinstance(picture, np.ndarray) else picture
    return np.asarray(whole.resize((side, side), Image.LANCZOS))


@functools.lru_cache(maxsize=1)
def fonts():
    """Every outline font of the machine; where there is none, Pillow's own letters are drawn."""
    return sorted(glob.glob("/usr/share/fonts/**/*.ttf", recursive=True) + glob.glob("/usr/share/fonts/**/*.otf", recursive=True))


def font(random, size):
    every = fonts()
    if every:
        try:
            return ImageFont.truetype(every[int(random.integers(len(every)))], size)
        except OSError:
            pass
    return ImageFont.load_default()


def words(random, length):
    letters = string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits + ".,;:-+()/&%"
    made = ""
    while len(made) < length:
        made += "".join(random.choice(list(letters), int(random.integers(1, 10)))) + " "
    return made[:length]


def pair(random):
    """Ink and paper that can be told apart."""
    while True:
        ink, paper = colour(random), colour(random)
        if abs(ink.mean() - paper.mean()) > 70:
            return tuple(ink.astype(int)), tuple(paper.astype(int))


def text(side, random):
    scale = int(random.choice([1, 1, 2]))
    ink, paper = pair(random)
    picture = Image.new("RGB", (side * scale, side * scale), paper)
    pen, y = ImageDraw.Draw(picture), int(random.integers(-8, 8))
    while y < side * scale:
        size = int(random.choice([9, 11, 13, 16, 20, 28, 44])) * scale
        pen.text((int(random.integers(-10, 20)), y), words(random, 3 * side * scale // size), fill=ink, font=font(random, size))
        y += int(size * random.uniform(1.1, 1.8))
    if random.random() < 0.3:
        picture = picture.rotate(random.uniform(-20, 20), Image.BICUBIC, fillcolor=paper)
    return shrunk(picture, side) if scale > 1 else np.asarray(picture)


def lines(side, random):
    """Curves, hatching, dots and filled outlines, as in drawings, diagrams and comics."""
    large = side * 3
    ink, paper = pair(random)
    picture = Image.new("RGB", (large, large), paper)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(3, 9))):
        points = curve(random, large)
        pen.polygon(points, fill=tuple(colour(random).astype(int)))
        pen.line(points + points[:1], fill=ink, width=int(random.integers(3, 10)), joint="curve")
    for _ in range(int(random.integers(2, 6))):
        x, y = random.uniform(0, large, 2)
        step, angle, width = random.uniform(6, 24), random.uniform(0, np.pi), int(random.integers(2, 5))
        across, along = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)]) * random.uniform(40, 200)
        for i in range(int(random.integers(5, 20))):
            middle = np.array([x, y]) + across * step * i
            pen.line([tuple(middle - along), tuple(middle + along)], fill=ink, width=width)
    return shrunk(picture, side)


def curve(random, side):
    """A closed smooth outline: a circle with a few harmonics."""
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = random.uniform(0.05, 0.35) * side * (1 + sum(random.normal(0, 0.25 / k) * np.cos(k * turn + random.uniform(0, 6)) for k in range(1, 6)))
    x, y = random.uniform(0, side, 2)
    return list(zip(x + radius * np.cos(turn), y + radius * np.sin(turn)))


def gradient(side, random):
    """Skies and studio walls: what must come out without bands or grain."""
    y, x = np.mgrid[:side, :side] / side
    angle = random.uniform(0, 2 * np.pi)
    if random.random() < 0.5:
        part = np.cos(angle) * x + np.sin(angle) * y
    else:
        part = np.hypot(x - random.random(), y - random.random())
    part = (part - part.min()) / np.ptp(part) + 0.05 * random.random() * cloud(side, random, 2.0)
    picture = colour(random) * (1 - part[..., None]) + colour(random) * part[..., None]
    if random.random() < 0.5:
        picture += cloud(side, random, 0.0)[..., None] * random.uniform(0.3, 1.5)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def screen(side, random):
    """Windows with bars, buttons, hairlines, icons and small text, on whole pixels, as screenshots have them."""
    picture = Image.new("RGB", (side, side), tuple(colour(random).astype(int)))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(2, 6))):
        left, top = (int(v) for v in random.integers(-20, side - 40, 2))
        right, bottom = left + int(random.integers(60, side)), top + int(random.integers(50, side))
        ink, paper = pair(random)
        pen.rectangle((left, top, right, bottom), fill=paper, outline=tuple(colour(random).astype(int)))
        pen.rectangle((left, top, right, top + 14), fill=tuple(colour(random).astype(int)))
        face, y = font(random, int(random.integers(9, 14))), top + 20
        while y < min(bottom - 12, side):
            if random.random() < 0.2:
                pen.rounded_rectangle((left + 6, y, left + 50, y + 14), 4, fill=tuple(colour(random).astype(int)), outline=ink)
            pen.text((left + 8, y), words(random, max(3, (right - left) // 8)), fill=ink, font=face)
            if random.random() < 0.3:
                pen.line((left, y + 15, right, y + 15), fill=ink)
            y += int(random.integers(14, 22))
    if random.random() < 0.15:
        picture = picture.filter(ImageFilter.SMOOTH)
    return np.asarray(picture)
