"""Fastest safe precision of a device."""

from typing import Literal, cast, get_args

import torch

from cellbench.utils.errors import UserError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def choose(device: str, *, grouped: bool) -> tuple[Precision, str]:
    """Choose a precision.

    Args:
        device: cpu, cuda or mps.
        grouped: True if the network has grouped (depthwise) convolutions.

    Returns:
        The precision, and the reason for it.
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
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def normalise(precision: str | int) -> Precision:
    """Return the full name of a precision.

    Args:
        precision: A name of Lightning's, short or full.

    Raises:
        UserError: It is not supported: 16-true gives NaN (measured on a CPU), and images are not
            normalised to the other types.
    """
    aliases = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    name = aliases.get(str(precision), str(precision))
    for allowed in get_args(Precision):
        if name == allowed:
            return cast(Precision, allowed)
    reason = "16-true gives NaN; " if name == "16-true" else ""
    raise UserError(
        f"trainer.precision: '{precision}' is not offered; {reason}"
        f"allowed: {', '.join(get_args(Precision))}"
    )
