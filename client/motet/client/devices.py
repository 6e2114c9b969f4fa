"""What "device" and "dtype" of owner.toml mean on this machine.

model.to(device_of(config))
"""

import torch

from motet.client.owner import TrainingConfig
from motet.protocols.errors import ConfigurationError


def device_of(config: TrainingConfig) -> torch.device:
    """The device that "device" under [training] means on this machine. Raises ConfigurationError for another."""
    here = torch.accelerator.current_accelerator(check_available=True)  # else: what torch was compiled for
    if config.device == "auto":
        return here or torch.device("cpu")
    try:
        wanted = torch.device(config.device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", here.type if here else "cpu"):
        raise ConfigurationError(
            f"saw device = {config.device!r} under [training], wanted auto, cpu"
            f"{f' or {here.type}' if here else ': this machine has no accelerator that torch can use'}"
        )
    return wanted


def arithmetic_of(config: TrainingConfig) -> torch.dtype:
    """The dtype that "dtype" under [training] means on this machine."""
    if config.dtype == "auto":
        return torch.float32 if device_of(config).type == "cpu" else torch.bfloat16
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
