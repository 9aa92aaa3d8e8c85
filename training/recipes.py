"""The table of what is trained, and how."""

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
    start: str = ""  # the recipe whose checkpoint the net begins from (layers that fit)
    square: float = 0.7  # from this part of the training on, the loss is the mean square instead of the mean absolute error
    options: dict = dataclasses.field(default_factory=dict)  # of the task


RECIPES = {
    "sr-x2-fast": Recipe("Enlarging", dict(scale=2, width=16, blocks=6), steps=200_000, batch=16, patch=32, rate=1e-3),
    "sr-x4-fast": Recipe("Enlarging", dict(scale=4, width=16, blocks=6), steps=100_000, batch=16, patch=32, rate=1e-3, start="sr-x2-fast"),
}
