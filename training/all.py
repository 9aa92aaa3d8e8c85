"""python3 -m training.all --budget-minutes 25 --out DIR: everything, on one GPU, in a given time.

The nets are small and leave a large GPU mostly idle, so several trainings run at once: each lane below is one sequence,
in which a recipe may begin from one before it; a recipe's schedule ends when its share of the time has passed. What is
interrupted goes on when the same command runs again. Afterwards, where PyTorch can export, DIR/models has the ONNX files with
manifests and cards; else run `python3 -m training.export NAME --out DIR` for each where it can.
"""

import argparse
import os
import subprocess
import sys
import time

import torch

from training import export, images, pictures, recipes

# Shares of the time. What a lane's last recipe leaves is for starting.
LANES = [
    [("sr-x2-fast", 0.55), ("sr-x4-fast", 0.40)],
    [("sr-x2-quality", 0.34), ("sr-x4-quality", 0.27), ("sr-x2-photo", 0.17), ("sr-x4-photo", 0.17)],
    [("denoise", 0.40), ("restore", 0.30), ("deblur", 0.25)],
    [("people", 0.95)],
    [("sr-x2-large", 0.95)],
]
SCORING = 3.0  # minutes for the exports and their scores


def lane(number, share, given):
    """Runs one lane's recipes, one after the other; False where one failed."""
    good = True
    for name, part in LANES[number]:
        hours = given.budget_minutes * share * part / 60
        command = [sys.executable, "-m", "training.train", name, "--out", given.out, "--hours", f"{hours:.5f}", "--device", given.device, "--every", "60"]
        command += ["--data", given.data] if given.data else []
        with open(os.path.join(given.out, name + ".log"), "a") as log:
            good = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode == 0 and good
    return good


def main():
    parser = argparse.ArgumentParser(prog="python3 -m training.all", description=__doc__)
    parser.add_argument("--budget-minutes", type=float, default=25.0, help="for everything, reading the photos included")
    parser.add_argument("--out", required=True)
    parser.add_argument("--data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lanes", default=",".join(str(i) for i in range(len(LANES))), help="which, by number")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    if given.lane is not None:
        sys.exit(0 if lane(given.lane, given.share, given) else 1)
    began = time.monotonic()
    folder = images.data_folder(given.data)
    # Once, before six trainings would each decode the same photos.
    for drawn in sorted({r.options.get("drawn", 0) for r in recipes.RECIPES.values() if r.task != "Masking"}):
        pictures.Store(folder, os.path.join(given.out, "cache"), drawn)
    share = max(0.1, 1 - ((time.monotonic() - began) / 60 + SCORING) / given.budget_minutes)
    print(f"photos read in {time.monotonic() - began:.0f} s", flush=True)
    again = [sys.executable, "-m", "training.all", "--out", given.out, "--device", given.device, "--budget-minutes", str(given.budget_minutes), "--share", str(share)]
    again += ["--data", given.data] if given.data else []
    wanted = [int(n) for n in given.lanes.split(",")]
    running = [(n, subprocess.Popen(again + ["--lane", str(n)])) for n in wanted]
    failed = [n for n, process in running if process.wait() != 0]
    print(f"trained in {(time.monotonic() - began) / 60:.1f} minutes; lanes that failed: {failed or 'none'}", flush=True)
    finish([name for n in wanted for name, _ in LANES[n]], folder, given)
    sys.exit(1 if failed else 0)


def finish(names, folder, given):
    command = f"python3 -m training.all --budget-minutes {given.budget_minutes:g} --out {given.out}"
    machine = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    for name in names:
        if not os.path.exists(os.path.join(given.out, name, "best.pt")):
            continue
        try:
            export.ship(name, given.out, os.path.join(given.out, "models"), folder, command, machine, "")
        except Exception as error:  # every kind: an exporter that is missing must not lose the other models
            print(f"{name}: not exported: {error}", flush=True)


if __name__ == "__main__":
    main()
