"""The processes of a run, one a device: who they are, and how they agree."""

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

T = TypeVar("T")

LAUNCHED = "CELLBENCH_LAUNCHED"
"""Set by our own launcher, whose end closes the standard input of what it has started."""


def environment() -> ClusterEnvironment | None:
    """What a launcher says of this process; None where no launcher has started several of them.

    Our own launcher and torchrun tell by RANK and WORLD_SIZE, srun by SLURM's variables.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else _Launched()
    # srun's variable: a batch script sees SLURM_NTASKS, and yet runs its commands once.
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return SLURMEnvironment()
    return None


class _Launched(LightningEnvironment):
    """LightningEnvironment with the launcher's numbers, from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.set_world_size(int(os.environ["WORLD_SIZE"]))
        self.set_global_rank(int(os.environ["RANK"]))


@dataclass(frozen=True)
class Ranks:
    """The processes of this run.

    Attributes:
        rank: This process' number; 0 writes the files, prints, and logs.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Meets the other processes, if there are any.

        Args:
            device: cpu, cuda or mps: what the model will run on.
        """
        told = environment()
        if told is None:
            return cls()
        ranks = cls(told.global_rank(), told.world_size())
        if LAUNCHED in os.environ:
            threading.Thread(target=_end_with_the_launcher, daemon=True).start()
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                init_method=f"tcp://{told.main_address}:{told.main_port}",
                rank=ranks.rank,
                world_size=ranks.size,
            )
            global _control  # torch.distributed's own state is global as well
            # What is agreed on lies in main memory: a GPU's queue is not waited for.
            _control = dist.new_group(backend="gloo")
        return ranks

    @staticmethod
    def leave() -> None:
        """Parts from the others at the end of the command."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and logs."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_control)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_control)
        return values

    def greatest(self, number: int) -> int:
        """The greatest of the ranks' numbers, on every rank."""
        if self.size == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=_control)
        return int(shared)


def _end_with_the_launcher() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed, even by a SIGKILL
    os.kill(os.getpid(), signal.SIGTERM)


_control: Any = None
