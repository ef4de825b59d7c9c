"""How weights are updated: optimizers, groups of parameters, learning rate, averages."""
