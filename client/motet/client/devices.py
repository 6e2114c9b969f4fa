"""What "device" and "dtype" of owner.toml mean on this machine.

model.to(device_of(config))
require_devices(config)                 # as many as there are processes
"""

import psutil
import torch

from motet.client.control_groups import group_free_bytes
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


def require_devices(config: TrainingConfig) -> None:
    """Raises ConfigurationError when this machine has no device for each of the processes that owner.toml asks for."""
    device = device_of(config)
    if config.processes == 1 or device.type == "cpu":
        return
    if device.index is not None:
        raise ConfigurationError(
            f"saw device = {config.device!r} with processes = {config.processes} under [training], wanted a device "
            f"without a number, since each process takes one of its own; say {device.type!r} or auto"
        )
    if (here := torch.accelerator.device_count()) < config.processes:
        raise ConfigurationError(
            f"saw processes = {config.processes} under [training], wanted at most {here}, which is how many devices of "
            f"type {device.type} this machine lets us see; lower it, or ask the scheduler for more"
        )


def free_bytes(device: torch.device) -> int:
    """The bytes of a device that may still be taken; of the CPU this machine's, or what its control groups leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, left = int(psutil.virtual_memory().available), group_free_bytes()
    return free if left is None else min(free, left)
