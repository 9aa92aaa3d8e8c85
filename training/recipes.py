"""The table of what is trained, and how. Every figure is for a CPU; `gpu` says what a GPU does instead."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    task: str  # the class in tasks.py
    net: dict  # its net's arguments
    steps: int  # with --hours instead, the schedule follows the clock
    batch: int
    patch: int  # side of the input patch, pixels
    rate: float  # Adam's peak learning rate; cosine to 1 % of it
    seed: int = 1
    amp: bool = False  # convolutions in 16 bits for most of the training, where the processor is faster so
    start: str = ""  # the recipe whose best weights the net begins from (layers that fit)
    square: float = 0.7  # from this part of the training on, the loss is the mean square instead of the mean absolute error
    options: dict = dataclasses.field(default_factory=dict)  # of the task
    sees: int = 0  # side of what a net for whole pictures sees in use, when it is not the patch's
    gpu: dict = dataclasses.field(default_factory=dict)  # fields that differ on a GPU

    @property
    def side(self):
        return self.sees or self.patch

    def on(self, device):
        """The recipe as it is for a device."""
        return dataclasses.replace(self, **self.gpu) if device.startswith("cuda") else self


FAST = dict(width=16, blocks=6)  # 15,940 parameters
FAST_X4 = dict(width=16, blocks=5, ends=(5, 3))  # 14,336
QUALITY = dict(width=32, blocks=11, ends=(5, 3))  # 103,716 at x2, 107,184 at x4
LARGE = dict(width=64, blocks=16, ends=(3, 3))  # 594 thousand at x2; for int8
WIDER = dict(batch=64, patch=48)
CLEAN = dict(width=48, blocks=12)  # 259,836
CLEAN_GPU = dict(net=dict(width=64, blocks=14), batch=48, patch=96)  # 530,892; for int8

RECIPES = {
    "sr-x2-fast": Recipe("Enlarging", dict(scale=2, **FAST), steps=150_000, batch=16, patch=32, rate=1e-3, gpu=WIDER),
    "sr-x4-fast": Recipe("Enlarging", dict(scale=4, **FAST_X4), steps=60_000, batch=16, patch=32, rate=1e-3, start="sr-x2-fast", gpu=WIDER),
    "sr-x2-quality": Recipe("Enlarging", dict(scale=2, **QUALITY), steps=250_000, batch=8, patch=48, amp=True, rate=7e-4, options=dict(drawn=60), gpu=WIDER),
    "sr-x4-quality": Recipe("Enlarging", dict(scale=4, **QUALITY), steps=120_000, batch=8, patch=48, amp=True, rate=7e-4, start="sr-x2-quality", options=dict(drawn=60), gpu=WIDER),
    "sr-x2-photo": Recipe("Enlarging", dict(scale=2, **QUALITY), steps=120_000, batch=8, patch=48, amp=True, rate=5e-4, start="sr-x2-quality", square=1.0, options=dict(drawn=60, photo=True), gpu=WIDER),
    "sr-x4-photo": Recipe("Enlarging", dict(scale=4, **QUALITY), steps=120_000, batch=8, patch=48, amp=True, rate=5e-4, start="sr-x4-quality", square=1.0, options=dict(drawn=60, photo=True), gpu=WIDER),
    "sr-x2-large": Recipe("Enlarging", dict(scale=2, **LARGE), steps=300_000, batch=16, patch=48, rate=5e-4, options=dict(drawn=60), amp=True, gpu=dict(batch=32, patch=64)),
    # The loss stays absolute for noise: the squares of strong noise would outweigh what clean pictures need, which is to be left alone.
    # It is square for JPEG and blur: most of their errors are small, and the net that does nothing is the absolute loss's nearest answer.
    "denoise": Recipe("Cleaning", CLEAN, steps=100_000, batch=8, patch=64, amp=True, rate=1e-3, square=1.0, options={"from": "for_denoise", "drawn": 60}, gpu=CLEAN_GPU),
    "restore": Recipe("Cleaning", CLEAN, steps=60_000, batch=8, patch=64, amp=True, rate=7e-4, start="denoise", square=0.0, options={"from": "for_restore", "drawn": 60}, gpu=CLEAN_GPU),
    "deblur": Recipe("Cleaning", CLEAN, steps=60_000, batch=8, patch=64, amp=True, rate=7e-4, start="denoise", square=0.0, options={"from": "for_deblur", "drawn": 60}, gpu=CLEAN_GPU),
    "people": Recipe("Masking", {}, steps=16_000, batch=8, patch=256, rate=1e-3, sees=288, options=dict(coarse=160), gpu=dict(batch=32, patch=320, sees=320, amp=True, options={})),
}
