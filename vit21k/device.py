"""A device: what it is called, and how to wait for it."""

import torch


def device_name(device: torch.device) -> str:
    """Return what *device* is called: a GPU's model, else its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until *device* has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
