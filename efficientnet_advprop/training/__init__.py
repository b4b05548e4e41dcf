"""How it learns: losses, optimizers, averages, the step and the loop around it."""
