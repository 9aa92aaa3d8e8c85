"""python3 -m training.evaluate NAME: scores of a run's best weights on the benchmark sets, beside bicubic or the input.

Super-resolution: PSNR and SSIM of MATLAB's Y, the border cropped by the scale, on the LR files that come with the sets, and on CBSD68,
which is 68 of the 100 photos that papers call BSD100.
`resize` checks our resize against those files; `curve NAME` scores every snapshot of a run, which chooses nothing.
"""

import argparse
import glob
import os
import re

import numpy as np
import torch

from training import degrade, images, people, recipes, tasks


def sr_pairs(folder, name, scale):
    """(high resolution, low): the set's own files, or, where it has none for this, made smaller as they were."""
    if name == "CBSD68":
        for path in images.paths(folder, "bench/CBSD68"):
            high = images.crop_to_multiple(images.read_rgb(path), scale)
            yield high, images.to_uint8(images.resize(high, high.shape[0] // scale, high.shape[1] // scale))
        return
    for high in sorted(glob.glob(os.path.join(folder, "bench", name, f"x{scale}", "*HR.png"))):
        yield images.read_rgb(high), images.read_rgb(high.replace("HR.png", "LR.png"))


def on_luma(net, low):
    return np.clip(tasks.through(net, tasks.tensor(images.luma(low)) / 255)[0], 0, 255)


def enlarging(net, scale, folder, sets=("Set5", "Set14", "CBSD68")):
    """[(set, bicubic's PSNR, SSIM, the net's PSNR, SSIM)]."""
    rows = []
    for name in sets:
        scores = []
        for high, low in sr_pairs(folder, name, scale):
            bicubic = images.luma(images.to_uint8(images.resize(low, low.shape[0] * scale, low.shape[1] * scale)))
            ours = on_luma(net, low)
            wanted = images.luma(high)[: ours.shape[0], : ours.shape[1]]
            bicubic = bicubic[: wanted.shape[0], : wanted.shape[1]]
            scores.append([f(x, wanted, scale) for x in (bicubic, ours) for f in (images.psnr, images.ssim)])
        if scores:
            rows.append((name, *np.mean(scores, axis=0)))
    return rows


def cleaned(net, spoilt):
    """uint8-valued picture of a 1 x 3 x height x width tensor in 0..255, odd sides padded and cropped again."""
    height, width = spoilt.shape[2:]
    padded = torch.nn.functional.pad(spoilt, (0, width % 2, 0, height % 2), mode="replicate")
    return np.clip(tasks.through(net, padded / 255)[:, :height, :width], 0, 255)


def cleaning(net, kind, folder, most=None):
    """[(what, PSNR of the input, the net's PSNR)]: CBSD68 for noise and blur, classic5 for JPEG."""
    paths = images.paths(folder, "bench/classic5" if kind == "for_restore" else "bench/CBSD68")[:most]
    if kind == "for_denoise":
        cases = [(f"noise of sigma {s}", s) for s in (0, 5, 15, 25, 50)]
    elif kind == "for_restore":
        cases = [(f"JPEG of quality {q}", q) for q in (10, 20, 30, 40, 90)]
    else:
        cases = [(f"Gaussian blur of sigma {s}", s) for s in (0, 0.8, 1.2, 1.8)]
    rows = []
    for what, value in cases:
        scores = []
        for i, path in enumerate(paths):
            clean = tasks.tensor(images.read_rgb(path))
            spoilt = spoil(clean, kind, value, i)
            scores.append([images.psnr(spoilt[0].numpy(), clean[0].numpy()), images.psnr(cleaned(net, spoilt), clean[0].numpy())])
        rows.append((what, *np.mean(scores, axis=0)))
    return rows


def spoil(clean, kind, value, seed):
    """As a file of 8 bits holds it: clipped and rounded, unlike in most papers, whose noise is neither."""
    if kind == "for_denoise":
        noise = torch.Generator().manual_seed(1000 + seed)
        return degrade.rounded(degrade.add_noise(clean, torch.tensor([float(value)]), noise))
    if kind == "for_restore":
        grey = clean[:, :1]
        coded = degrade.jpeg(torch.nn.functional.pad(grey, (0, (16 - grey.shape[3]) % 16, 0, (16 - grey.shape[2]) % 16), mode="replicate"), torch.tensor([float(value)]))
        return coded[:, :, : grey.shape[2], : grey.shape[3]].expand(-1, 3, -1, -1)
    return degrade.rounded(degrade.blur(clean, degrade.gaussian(torch.tensor([float(value)]), 13)))


def masking(net, folder, side):
    from training import pictures

    pairs = people.read(folder)
    held = pictures.split(pairs, len(pairs) // 10, seed=11)[1]
    return float(np.mean([people.iou(net, *people.load(pair), side) for pair in held]))


def table(name, net, folder):
    """(a Markdown table, one line) of the scores on the benchmark sets."""
    recipe = recipes.RECIPES[name]
    if recipe.task == "Enlarging":
        rows = enlarging(net, recipe.net["scale"], folder)
        text = "| set | bicubic PSNR | SSIM | this net PSNR | SSIM |\n|---|---|---|---|---|\n"
        text += "".join(f"| {r[0]} | {r[1]:.2f} | {r[2]:.4f} | {r[3]:.2f} | {r[4]:.4f} |\n" for r in rows)
        return text, "PSNR of Y: " + ", ".join(f"{r[0]} {r[3]:.2f} dB (bicubic {r[1]:.2f})" for r in rows) + "."
    if recipe.task == "Cleaning":
        rows = cleaning(net, recipe.options["from"], folder)
        of = "classic5, grey" if recipe.options["from"] == "for_restore" else "CBSD68, colour"
        text = f"| {of}; 8-bit input | input PSNR | this net PSNR |\n|---|---|---|\n" + "".join(f"| {r[0]} | {r[1]:.2f} | {r[2]:.2f} |\n" for r in rows)
        return text, f"PSNR on {of}: " + ", ".join(f"{r[0]} {r[2]:.2f} dB (input {r[1]:.2f})" for r in rows) + "."
    mean = masking(net, folder, recipe.side)
    return f"Mean IoU on the pictures set aside: {mean:.3f}\n", f"Mean IoU {mean:.3f}."


def check_resize(folder):
    """Our resize of HR against the sets' LR files, which MATLAB made."""
    for scale in (2, 4):
        worst = min(images.psnr(images.to_uint8(images.resize(high, *low.shape[:2])), low) for high, low in sr_pairs(folder, "Set5", scale))
        print(f"x{scale}: at least {worst:.2f} dB to the LR files of Set5")
        if worst < 50:
            raise SystemExit("our resize is not MATLAB's")


def main():
    from training import export, nets, train

    parser = argparse.ArgumentParser(prog="python3 -m training.evaluate", description=__doc__)
    parser.add_argument("name", choices=sorted(recipes.RECIPES) + ["resize"])
    parser.add_argument("--data")
    parser.add_argument("--out", default=train.RUNS)
    parser.add_argument("--curve", action="store_true", help="score every snapshot on Set5 (super-resolution)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = images.data_folder(given.data)
    if given.name == "resize":
        return check_resize(folder)
    if given.curve:
        recipe = recipes.RECIPES[given.name]
        for path in sorted(glob.glob(os.path.join(given.out, given.name, "at-*s.pt"))):
            state = torch.load(path, map_location="cpu")
            net = nets.Enlarge(**recipe.net)
            net.load_state_dict(state["net"])
            row = enlarging(nets.plain(net), recipe.net["scale"], folder, ("Set5",))[0]
            print(f"{int(re.search(r'at-([0-9]+)s', path)[1]) // 60} min, step {state['step']}: Set5 {row[3]:.2f} dB, SSIM {row[4]:.4f}")
        return None
    net, state = export.load(given.name, given.out)
    print(f"step {state['step']}, held out {state['score']:.2f}")
    print(table(given.name, net, folder)[0])
    return None


if __name__ == "__main__":
    main()
