"""The fastest safe precision of a device."""

from typing import Literal

import torch

from cellbench.errors import UserError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def choose(device: str, *, grouped: bool) -> tuple[Precision, str]:
    """Chooses a precision.

    Args:
        device: cpu, cuda or mps.
        grouped: Whether the network has grouped (depthwise) convolutions.

    Returns:
        The precision, and why it was chosen.
    """
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "fastest on this GPU"
        return "16-mixed", "fastest on this GPU, which has no bfloat16"
    if device != "cpu":
        return "32-true", f"safe on {device}"
    if not _cpu_multiplies_bfloat16():
        return "32-true", "this CPU has no bfloat16 arithmetic"
    if grouped:
        return "32-true", "a CPU's grouped convolutions are slower in bfloat16"
    return "bf16-mixed", "fastest on this CPU"


def _cpu_multiplies_bfloat16() -> bool:
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16"))


def refuse_unsafe(precision: str, device: str) -> None:
    """Refuses what does not train.

    Raises:
        UserError: 16-true, whose sums overflow (measured: NaN on a CPU).
    """
    if precision in ("16-true", "16"):
        raise UserError(
            f"trainer.precision: {precision} gives NaN; use 16-mixed, bf16-mixed or 32-true"
        )
