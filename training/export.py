"""python3 -m training.export NAME: the best weights of a run as ONNX, with the manifest the engine reads and a model card.

The exported graph has plain convolutions with constant weights, opset 13, free height and width. It is checked here, by a
second implementation of its operators in numpy, against PyTorch; `go test ./engine/neural` checks it through ONNX Runtime.
With --int8 the net ships in whole numbers (quantize.py), which computes it two to three times as fast, and says what that costs.
"""

import argparse
import inspect
import json
import os
import platform

import numpy as np
import torch

from training import evaluate, images, nets, onnx, quantize, recipes, train

MODELS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "engine", "neural", "models")

# What the engine calls them: task, variant.
NAMES = {
    "sr-x2-fast": ("upscale", "fast"),
    "sr-x4-fast": ("upscale", "fast"),
    "sr-x2-quality": ("upscale", "quality"),
    "sr-x4-quality": ("upscale", "quality"),
    "sr-x2-photo": ("upscale", "photo"),
    "sr-x4-photo": ("upscale", "photo"),
    "sr-x2-large": ("upscale", "large"),
    "denoise": ("denoise", "quality"),
    "restore": ("restore", "quality"),
    "deblur": ("deblur", "quality"),
    "people": ("matting", "people"),
}

LIMITS = {
    "fast": "Trained on clean input shrunk by bicubic: it sharpens JPEG's blocks and noise as if they were detail.",
    "quality": "Trained on clean input shrunk by bicubic: it sharpens JPEG's blocks and noise as if they were detail.",
    "large": "Trained on clean input shrunk by bicubic: it sharpens JPEG's blocks and noise as if they were detail.",
    "photo": "Trained on blurred, noisy, JPEG-coded input: softer than the clean variant where the input is clean.",
    "denoise": "White noise up to sigma 55 of 255, and noise as cameras leave it; not film grain, which it removes, nor stripes.",
    "restore": "JPEG from quality 8 on, weak noise and softness; scratches and missing parts are not its work.",
    "deblur": "Blur up to a radius of about 2.5 pixels and the noise of daylight; strong movement stays.",
    "matting": "One or two people, whole or in part. Other subjects are not its work. Masks of the training set are 2 to 4 pixels rough.",
}


def load(name, out):
    """(plain net, state) of the best checkpoint."""
    state = torch.load(os.path.join(out, name, "best.pt"), map_location="cpu")
    recipe = recipes.RECIPES[name]
    net = nets.Subject() if recipe.task == "Masking" else getattr(nets, {"Enlarging": "Enlarge", "Cleaning": "Clean"}[recipe.task])(**recipe.net)
    net.load_state_dict(state["net"])
    return nets.plain(net), state


def write(net, path, recipe):
    """Writes the ONNX file and returns the largest difference of its outputs from PyTorch's on random pictures."""
    side = recipe.side if recipe.task == "Masking" else 64
    given = torch.rand(1, 1 if recipe.task == "Enlarging" else 3, side, side)
    free = {"input": {2: "height", 3: "width"}, "output": {2: "height_out", 3: "width_out"}}
    # Newer versions of PyTorch would take another exporter, which needs further packages.
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        net, given, path, opset_version=13, input_names=["input"], output_names=["output"],
        dynamic_axes=None if recipe.task == "Masking" else free, do_constant_folding=True, **older,
    )
    graph = onnx.read(path)
    worst = 0.0
    for shape in [(side, side)] if recipe.task == "Masking" else [(side, side), (38, 50)]:
        given = torch.rand(1, given.shape[1], *shape)
        with torch.no_grad():
            worst = max(worst, float(np.abs(onnx.run(graph, given.numpy()) - net(given).numpy()).max()))
    return worst


def manifest(name, recipe, net, about):
    task, variant = NAMES[name]
    made = {"task": task, "variant": variant, "about": about}
    if recipe.task == "Masking":
        return made | {"whole": {"width": recipe.side, "height": recipe.side}, "input": {"channels": "rgb"}, "output": {"activation": "sigmoid"}}
    # Beyond the receptive field's radius nothing is seen; the engine's tiles overlap by it.
    made |= {"tile": 256, "overlap": net.radius + net.radius % 2}
    if recipe.task == "Enlarging":
        # The engine's luma has the full range; the net learnt the studio range of MATLAB's rgb2ycbcr.
        return made | {"scale": recipe.net["scale"], "input": {"channels": "y", "range": STUDIO}, "output": {"range": STUDIO}}
    return made | {"multiple": 2, "input": {"channels": "rgb"}}


STUDIO = [round(16 / 255, 7), round(235 / 255, 7)]


def sample(net, recipe):
    """What the engine must give, to 1e-4, for a picture by rule: rows of the output, without what the picture's border touches.

    The rule: sample (x, y) of plane c is ((37 x + 101 y + 53 c + 19 (x y mod 7)) mod 256) / 255.
    """
    whole = recipe.task == "Masking"
    scale, planes = recipe.net.get("scale", 1), 1 if recipe.task == "Enlarging" else 3
    border = 0 if whole else net.radius + net.radius % 2
    side, step = (recipe.side, 16) if whole else (2 * border + 8, 1)
    y, x = np.mgrid[:side, :side]
    given = np.stack([(37 * x + 101 * y + 53 * c + 19 * (x * y % 7)) % 256 / 255 for c in range(planes)]).astype(np.float32)[None]
    low, high = STUDIO if planes == 1 else (0.0, 1.0)
    with torch.no_grad():
        out = net(torch.from_numpy(given * (high - low) + low))
    out = ((out.sigmoid() if whole else out).numpy()[0] - low) / (high - low)
    part = out[:, border * scale : (side - border) * scale : step, border * scale : (side - border) * scale : step]
    return {"side": side, "border": border, "step": step, "planes": [[round(float(v), 6) for v in plane.ravel()] for plane in part]}


def file_name(name):
    task, variant = NAMES[name]
    scale = recipes.RECIPES[name].net.get("scale")
    return "-".join([task] + ([f"x{scale}"] if scale else []) + [variant])


def curve(name, out):
    """The learning curve, thinned to about a dozen lines."""
    with open(os.path.join(out, name, "log.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    step = max(1, len(lines) // 12)
    kept = lines[::step] + ([lines[-1]] if (len(lines) - 1) % step else [])
    return "\n".join(f"| {p['step']} | {p['seconds'] // 60} | {p['score']:.2f} |" for p in kept), lines[-1]


def card(name, recipe, net, state, scores, out, command, machine, difference, notes):
    task, variant = NAMES[name]
    points, last = curve(name, out)
    count = sum(p.numel() for p in net.parameters())
    work = multiply_adds(net, recipe)
    drawn = recipe.options.get("drawn", 0)
    data = "- BSDS500, its train and test parts, 400 photos less 10 held out (Arbelaez, Maire, Fowlkes and Malik, PAMI 2011)\n"
    data += "- Sun-Hays 80, 80 photos, as given with SelfExSR (Huang, Singh and Ahuja, CVPR 2015)\n"
    if recipe.task == "Masking":
        data = "- 813 street photos with masks of clothing-co-parsing (Yang, Luo and Lin, CVPR 2014)\n- Backgrounds: BSDS500, train and test\n"
    if drawn:
        data += f"- {drawn} pictures drawn by training/synth.py (dead leaves, text, lines, gradients, screens)\n"
    limit = LIMITS[variant if task == "upscale" else task]
    return f"""# {file_name(name)}

{recipe.task} by `training/nets.py`: {count:,} parameters, {work / 1e9:.1f} thousand million multiply-adds for a {"picture" if recipe.task == "Masking" else "megapixel of input"}.

Weights: made by this project, under the licence of this repository. Nothing of the photos is in them but what a net of this size learns.

## Data
{data}
No benchmark set was trained on or used to choose the weights: the checkpoint was chosen by {len_held(recipe)} pictures held out of the training set.

## Made by
`{command}` (seed {recipe.seed}; recipe `{name}` of `training/recipes.py`)

{last['step']:,} steps, {last['seconds'] / 60:.0f} minutes. Machine: {machine}. PyTorch {torch.__version__.split('+')[0]}, Python {platform.python_version()}.

{notes}

## Learning curve (held-out pictures)
| step | minutes | {'mean IoU, per cent' if recipe.task == 'Masking' else 'PSNR, dB'} |
|---|---|---|
{points}

The shipped weights: step {state['step']:,}, {state['score']:.2f}.

## Scores
{scores}
Measured with PyTorch by `python3 -m training.{"quantize" if "int8" in scores else "evaluate"} {name}`. The ONNX file differs from PyTorch by at most {difference:.1e} on random input.

## Limits
{limit}
"""


def len_held(recipe):
    return 90 if recipe.task == "Masking" else 10


def multiply_adds(net, recipe):
    """Of the convolutions, for a megapixel of input (for people: for one picture)."""
    side = recipe.side if recipe.task == "Masking" else 64
    done = [0]

    def count(module, given, out):
        done[0] += out.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        net(torch.rand(1, 1 if recipe.task == "Enlarging" else 3, side, side))
    for hook in hooks:
        hook.remove()
    return done[0] if recipe.task == "Masking" else done[0] * 1e6 / side**2


def ship(name, out, to, folder, command, machine, notes, int8=None):
    """int8: how many dB whole numbers may lose on any benchmark set; None for a net in floats."""
    recipe = recipes.RECIPES[name]
    net, state = load(name, out)
    os.makedirs(to, exist_ok=True)
    base = os.path.join(to, file_name(name))
    shipped, within = net, 1e-4
    if int8 is not None:
        # Two codes: the order of the first convolution's float sums tips a value now and then from one whole number to the next.
        (shipped, exact, whole), within = quantize.fitted(name, net, folder, out), 8e-3
        difference = quantize.write(shipped, base + ".onnx")
    else:
        difference = write(net, base + ".onnx", recipe)
    if difference > within:
        raise SystemExit(f"{base}.onnx differs from PyTorch by {difference}")
    if int8 is not None:
        table, short, loss = quantize.table(name, net, shipped, folder)
        if loss > int8:
            raise SystemExit(f"{table}{name} loses {loss:.3f} dB by int8; more than {int8} does not ship")
        table += f"\nint8 by `training/quantize.py`, all but the ends. On the pictures held out: float {exact:.2f} dB, int8 {whole:.2f}.\n"
    else:
        table, short = evaluate.table(name, net, folder)
    with open(base + ".json", "w") as f:
        json.dump(manifest(name, recipe, net, f"Ours, under the licence of this repository. {short}"), f, indent=2)
        f.write("\n")
    with open(base + ".sample", "w") as f:
        json.dump(sample(shipped, recipe) | ({} if int8 is None else {"within": within}), f)
        f.write("\n")
    with open(base + ".md", "w") as f:
        f.write(card(name, recipe, net, state, table, out, command, machine, difference, notes))
    print(base, os.path.getsize(base + ".onnx"), "bytes, differs by", difference)
    print(table)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m training.export", description=__doc__)
    parser.add_argument("name", choices=sorted(NAMES))
    parser.add_argument("--data")
    parser.add_argument("--out", default=train.RUNS)
    parser.add_argument("--to", default=MODELS)
    parser.add_argument("--command", help="what trained it, for the card")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="its class, for the card")
    parser.add_argument("--notes", default="", help="for the card")
    whole = "all but the net's ends in whole numbers (Enlarge and Clean), if that loses at most so many dB on any benchmark set"
    parser.add_argument("--int8", type=float, nargs="?", const=0.1, metavar="DB", help=whole + ": 0.1")
    given = parser.parse_args()
    command = given.command or f"make train-{given.name}"
    ship(given.name, given.out, given.to, images.data_folder(given.data), command, given.machine, given.notes, given.int8)


if __name__ == "__main__":
    main()
