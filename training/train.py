"""python3 -m training.train NAME: trains one recipe, resumes it when it was interrupted, keeps the best weights.

Everything goes to RUNS/NAME: log.jsonl (the learning curve), last.pt (to resume from), best.pt (highest score on pictures
held out from the training set) and snapshots by time. The learning rate follows the number of steps, or, with --hours, the
time spent training; only the former repeats exactly.
"""

import argparse
import json
import math
import os
import re
import time

import torch

from training import images, nets, recipes, tasks

EXACT = 0.85  # from this part of the training on, everything is computed in 32 bits, as in use
RUNS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runs")


def learning_rate(recipe, step, progress):
    warm = min(1.0, (step + 1) / 100)
    return recipe.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def half_precision(recipe, device):
    """The 16-bit type that convolutions are computed in, or None. bfloat16 halves a step's time on a CPU with instructions for it."""
    if not recipe.amp:
        return None
    if device != "cpu":
        return torch.float16
    with open("/proc/cpuinfo") as f:
        return torch.bfloat16 if re.search(r"\b(avx512_bf16|amx_bf16)\b", f.read()) else None


def save(path, value):
    torch.save(value, path + ".new")
    os.replace(path + ".new", path)


def start_from(net, path):
    """Copies the weights of another run whose names and shapes fit."""
    weights = torch.load(path, map_location="cpu")["net"]
    own = net.state_dict()
    net.load_state_dict({**own, **{k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}})


class Training:
    def __init__(self, name, recipe, folder, out, hours=0.0, device="cpu", limit=0):
        recipe = recipe.on(device)
        self.name, self.recipe, self.hours, self.device = name, recipe, hours, device
        self.folder = os.path.join(out, name)
        os.makedirs(self.folder, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.task = getattr(tasks, recipe.task)(recipe, folder, os.path.join(out, "cache"), device, limit)
        self.net = self.task.net().to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), recipe.rate)
        self.half = half_precision(recipe, device)
        self.scaler = torch.cuda.amp.GradScaler(enabled=self.half == torch.float16)
        self.step, self.elapsed, self.best = 0, 0.0, -math.inf
        last = os.path.join(self.folder, "last.pt")
        if os.path.exists(last):
            self._resume(torch.load(last, map_location=device))
        elif recipe.start:
            start_from(self.net, os.path.join(out, recipe.start, "best.pt"))

    def _resume(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.best = state["step"], state["elapsed"], state["best"]

    def progress(self):
        return self.elapsed / (self.hours * 3600) if self.hours else self.step / self.recipe.steps

    def one_step(self):
        progress = self.progress()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, progress)
        given, wanted = self.task.batch(self.step)
        given = given.contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(self.device).type, dtype=self.half or torch.bfloat16, enabled=bool(self.half) and progress < EXACT):
            out = self.net(given)
        loss = self.task.loss(out.float(), wanted, progress >= self.recipe.square)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        # A rare bad batch must not undo hours: the gradient's length is bounded.
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return loss.detach()

    def check(self, loss, began):
        """Scores, logs and saves."""
        score = self.task.validate(nets.plain(self.net))
        line = dict(step=self.step, seconds=round(self.elapsed), loss=round(float(loss), 6), score=round(score, 4), progress=round(self.progress(), 4))
        with open(os.path.join(self.folder, "log.jsonl"), "a") as f:
            f.write(json.dumps(line) + "\n")
        print(line, f"{self.step / max(self.elapsed, 1):.1f} steps/s", flush=True)
        state = dict(net=self.net.state_dict(), step=self.step, elapsed=self.elapsed, score=score, recipe=self.name)
        if score > self.best:
            self.best = score
            save(os.path.join(self.folder, "best.pt"), state)
        full = dict(state, optimizer=self.optimizer.state_dict(), best=self.best)
        save(os.path.join(self.folder, "last.pt"), full)
        if began:
            save(os.path.join(self.folder, f"at-{int(self.elapsed):06d}s.pt"), state)
        return score

    def run(self, every=120.0):
        """Trains until the schedule ends; every: seconds between checks."""
        mean, due, snapshot = None, self.elapsed + every, self.elapsed
        # On a CPU, the processor's time: a schedule by the clock would end early on a machine that does other work too.
        now = time.process_time if self.device == "cpu" else time.monotonic
        clock = now()
        while self.progress() < 1.0:
            loss = self.one_step()
            mean = loss if mean is None else 0.99 * mean + 0.01 * loss
            at = now()
            self.elapsed, clock = self.elapsed + at - clock, at
            if self.elapsed >= due:
                due = self.elapsed + every
                keep = self.elapsed - snapshot >= 600
                snapshot = self.elapsed if keep else snapshot
                self.check(mean, keep)
        return self.check(mean if mean is not None else 0.0, True)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m training.train", description=__doc__)
    parser.add_argument("name", choices=sorted(recipes.RECIPES))
    parser.add_argument("--data", help="the folder with train/ (default: the nearest shared/data)")
    parser.add_argument("--out", default=RUNS)
    parser.add_argument("--hours", type=float, default=0.0, help="let the schedule follow the time spent: the processor's on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="one thread per training is the fastest use of a shared CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checks")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=NUMBER", help="change a field of the recipe")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device != "cpu":
        torch.backends.cudnn.benchmark = True
    recipe = recipes.RECIPES[given.name]
    for change in given.set:
        field, value = change.split("=", 1)
        recipe = recipes.dataclasses.replace(recipe, **{field: type(getattr(recipe, field))(value)})
    training = Training(given.name, recipe, images.data_folder(given.data), given.out, given.hours, given.device)
    print(given.name, nets.parameters(training.net), "parameters", recipe, flush=True)
    training.run(given.every)


if __name__ == "__main__":
    main()
