"""Processes of a run, one per device, and the communication between them."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from cellbench.utils.streams import LAUNCHED

T = TypeVar("T")


def environment() -> ClusterEnvironment | None:
    """Return the cluster environment that a launcher has set; None for a single process.

    cellbench's launcher and torchrun set RANK and WORLD_SIZE, srun sets SLURM's variables.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else _Launched()
    # Set by srun alone; SLURM_NTASKS is set in a batch script as well, which runs commands once.
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return SLURMEnvironment()
    return None


class _Launched(LightningEnvironment):
    """LightningEnvironment with the launcher's rank and world size from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.set_world_size(int(os.environ["WORLD_SIZE"]))
        self.set_global_rank(int(os.environ["RANK"]))


@dataclass(frozen=True)
class Ranks:
    """Processes of a run, as one of them sees them."""

    rank: int = 0
    """Number of this process; 0 writes the files, prints, and logs."""
    size: int = 1
    """Number of all processes."""

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Connect to the other processes, if there are any.

        Args:
            device: Kind of device that the model will run on: cpu, cuda or mps.
        """
        cluster = environment()
        if cluster is None:
            return cls()
        ranks = cls(cluster.global_rank(), cluster.world_size())
        if LAUNCHED in os.environ:
            threading.Thread(target=_end_with_the_launcher, daemon=True).start()
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                init_method=f"tcp://{cluster.main_address}:{cluster.main_port}",
                rank=ranks.rank,
                world_size=ranks.size,
            )
            global _control  # torch.distributed's own state is global as well
            # The exchanged values are in main memory, so that no GPU has to be synchronised.
            _control = dist.new_group(backend="gloo")
        return ranks

    @staticmethod
    def leave() -> None:
        """Disconnect from the other processes at the end of the command."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True in the process that writes, prints and logs."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_control)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks on every rank, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_control)
        return values

    def greatest(self, number: int) -> int:
        """Return the greatest of the ranks' numbers on every rank."""
        if self.size == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=_control)
        return int(shared)


def _end_with_the_launcher() -> None:
    """Terminate this process once the launcher has ended."""
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed, which even SIGKILL does
    os.kill(os.getpid(), signal.SIGTERM)


_control: Any = None  # process group of agree, gather and greatest
