"""Everything between gradients and weights: schedules, the batch plan, parameter groups, clipping and the guard."""
