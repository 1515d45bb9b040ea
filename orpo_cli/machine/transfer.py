"""Send tensors to a device."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of main memory on a device.

    A GPU copies it from pinned memory when it comes to it. From other memory the process would wait for all that the
    GPU has to do before, once for each tensor of each micro-batch.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
