"""Several optimizers that look like one: Muon for hidden matrices and AdamW for the rest, say."""

from typing import Any

from torch.optim import Optimizer


class Together:
    """One optimizer made of several, each with its own parameters; steps them in the order given."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them, the very dicts, so that setting a rate here sets it there."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Update the parameters of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop, or set to zero, all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all, by position."""
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(index)])
