"""python3 -m training.smoke: in a minute or two on a CPU, does every pipeline still learn?

Each kind of net is trained for a few hundred steps on a dozen photos, small, and must then beat doing nothing (bicubic, or
the spoilt input) on photos it has not seen by the margin stated here, and its export must equal it. Exits with 1 where one does not.
Margins are about half of what was reached when they were written.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time

import numpy as np
import torch

from training import export, images, nets, recipes, train

SMALL_CLEAN = dict(width=16, blocks=3, expand=64)
# recipe, steps, fields that differ, margin over doing nothing (dB; per cent of the loss for people)
CASES = [
    ("sr-x2-fast", 400, dict(batch=8, rate=2e-3), 0.8),
    ("sr-x4-fast", 400, dict(batch=8, rate=2e-3, start=""), 0.5),
    ("sr-x2-photo", 500, dict(batch=8, net=dict(scale=2, **recipes.FAST), rate=2e-3, start=""), 0.5),
    ("denoise", 250, dict(batch=8, patch=48, net=SMALL_CLEAN, rate=2e-3), 1.5),
    ("restore", 500, dict(batch=8, patch=48, net=SMALL_CLEAN, rate=2e-3, start=""), 0.1),
    ("deblur", 300, dict(batch=8, patch=48, net=SMALL_CLEAN, rate=2e-3), 0.5),
    ("people", 80, dict(batch=4, patch=96), 12.0),
]


class Bicubic(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        picture = x[0, 0].numpy()
        return torch.from_numpy(images.resize(picture, picture.shape[0] * self.scale, picture.shape[1] * self.scale))[None, None]


def without(training):
    """The score of doing nothing; for people, whose score says little so early, the loss of the untrained net."""
    recipe = training.recipe
    if recipe.task == "Enlarging":
        return training.task.validate(Bicubic(recipe.net["scale"]))
    if recipe.task == "Cleaning":
        return training.task.validate(torch.nn.Identity(), least=1)
    return held_loss(training)


def held_loss(training):
    """Of batches that training does not reach."""
    training.net.train()
    with torch.no_grad():
        losses = []
        for step in range(1_000_000, 1_000_004):
            given, wanted = training.task.batch(step)
            losses.append(float(training.task.loss(training.net(given), wanted, False)))
    return float(np.mean(losses))


def case(name, steps, change, margin, folder, out):
    recipe = dataclasses.replace(recipes.RECIPES[name], steps=steps, options=dict(recipes.RECIPES[name].options, drawn=6), **change)
    training = train.Training(name, recipe, folder, out, limit=12)
    if hasattr(training.task, "store"):
        training.task.store.held = [h[:256, :256] for h in training.task.store.held[:4]]
    before = without(training)
    began = time.monotonic()
    while training.progress() < 1.0:
        training.one_step()
    if recipe.task == "Masking":
        after = held_loss(training)
        gained, unit = 100 * (before - after) / before, "% of the loss"
    else:
        # So early a net still blurs what was all but clean; what is asked is that it improves what was not.
        after = training.task.validate(nets.plain(training.net), **({"least": 1} if recipe.task == "Cleaning" else {}))
        gained, unit = after - before, "dB"
    difference = export.write(nets.plain(training.net), os.path.join(out, name + ".onnx"), recipe)
    passed = gained >= margin and difference <= 1e-4
    print(
        f"{'ok  ' if passed else 'FAIL'} {name}: {before:.3f} -> {after:.3f}, gained {gained:.2f} {unit} (at least {margin}), "
        f"export differs by {difference:.1e}; {steps} steps in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return passed


def main():
    parser = argparse.ArgumentParser(prog="python3 -m training.smoke", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--only", help="one recipe")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        results = [case(*c, images.data_folder(given.data), out) for c in CASES if given.only in (None, c[0])]
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
