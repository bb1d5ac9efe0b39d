"""Turns a GGUF file into a folder that vLLM loads; demo_models runs it in the engine's environment.

It imports nothing of ours: that environment has transformers, accelerate and gguf, but not Strongroom.
Usage: python gguf_to_safetensors.py MODEL.gguf TARGET_FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, target: Path) -> None:
    """Writes bfloat16 safetensors, config, tokenizer and chat template into `target`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain tensors by now. Left in place, these two would make the saved folder claim to be
    # quantised, and vLLM would look for a GGUF loader.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
