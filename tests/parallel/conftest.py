"""One model in the formats that are read part by part, for both frameworks."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from gqa_weights import port
from tests.weights.test_gguf_families import written_gguf

# 34 MiB, most of it in the embedding, the head and the feed-forwards, which no format stores rearranged.
LLAMA = transformers.LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `safetensors`, `gguf.gguf` and `orbax.orbax`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = transformers.LlamaForCausalLM(LLAMA)
    model.save_pretrained(folder / "safetensors")
    written_gguf("llama", model, folder / "gguf.gguf")
    port.write(port.plan(folder / "safetensors", "canonical"), folder / "orbax.orbax")
    return folder
