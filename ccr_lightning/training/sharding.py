"""The strategy ``fsdp2``: each device keeps a part of the parameters, gradients and optimiser states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from ccr_lightning import distributed
from ccr_lightning.errors import CCRError
from ccr_lightning.training.checkpoint_file import explain_mismatch


class FullyShardedStrategy(ModelParallelStrategy):
    """Shards over all devices what the module's ``configure_model`` shards.

    Checkpoints are single files like those of other strategies: a run may go on, and be tested, with any of them.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Takes all devices of all nodes, where Lightning would take one of each node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimiser states.

        Lightning would mistake the optimiser states of other strategies, whose numbers follow the parameter groups.

        Raises:
            CCRError: If the checkpoint is of another architecture, or the module refuses to go on from it.
        """
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        module = self.lightning_module
        assert module is not None
        if mismatch := explain_mismatch(module.state_dict(), checkpoint["state_dict"]):
            raise CCRError(mismatch)
        module.on_load_checkpoint(checkpoint)  # Lightning would ask it when this has failed
        names = {parameter: name for name, parameter in module.named_parameters()}
        states = [
            (optimizer, _by_name(state, optimizer, names))
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False)
        ]
        distributed.load_sharded(module, checkpoint.pop("state_dict"), states)
        return checkpoint


def _by_name(state: Mapping[str, Any], optimizer: Optimizer, names: Mapping[Any, str]) -> dict[str, Any]:
    """A state whose parameters have names instead of numbers: those of the parameters at their places in the groups."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    name_of = {number: names[parameter] for number, parameter in zip(numbers, parameters, strict=True)}
    return {
        "state": {name_of[number]: of for number, of in state["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }
