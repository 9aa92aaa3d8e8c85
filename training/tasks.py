"""What each kind of net learns from, and what it is scored by."""

from training import nets, pairs


class Enlarging:
    """Luma super-resolution from MATLAB's bicubic."""

    def __init__(self, recipe, folder, cache):
        self.recipe = recipe
        self.pairs = pairs.Pairs(folder, recipe.net["scale"], cache)

    def net(self):
        return nets.Enlarge(**self.recipe.net)

    def batch(self, random):
        return self.pairs.batch(random, self.recipe.batch, self.recipe.patch)

    def validate(self, net):
        return self.pairs.validate(net)
