"""Keep the frozen linear layers under an adapter in 4 or 8 bits, with bitsandbytes; the head stays as it is."""

import math
from types import MethodType
from typing import Any

import torch
from torch import nn

WEIGHT_BYTES = {4: 1 / 2 + 1 / 64 + 4 / (64 * 256), 8: 1.0}
"""Bytes a weight. NF4 keeps the size of each 64 weights in a byte, and that of each 256 such bytes in fp32."""


def loading_options(bits: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize a model while it is loaded, onto a device.

    Args:
        dtype: the dtype in which matrices are multiplied, after their weights are expanded.
    """
    from transformers import BitsAndBytesConfig

    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def compute_as_in_training(model: nn.Module) -> None:
    """Keep the quantized layers of a model in training mode, in which nothing but their kernel differs.

    On a CPU bitsandbytes has kernels for evaluation that round the activations, to bf16 or to 8 bits, and that have no
    gradient: losses of training and of evaluation would not be those of the same model.
    """
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.training = True
            module.train = MethodType(_unchanged, module)  # type: ignore[method-assign]


def _unchanged(module: nn.Module, _mode: bool = True) -> nn.Module:
    return module


def weight_count(weight: nn.Parameter) -> int:
    """Return how many weights a parameter holds; quantized ones are several in a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def quantized_layers(model: Any) -> list[Any]:
    """Return the weights of a model that are quantized, or would be, possibly under adapters."""
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return [module.weight for module in linear if not module.weight.requires_grad]
