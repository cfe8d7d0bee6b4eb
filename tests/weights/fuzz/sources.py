"""Small sound checkpoints of every format, each a folder or a file in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights import port
from gqa_weights.checkpoint import TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.families import FAMILIES, foreign_weights, read_model

WORDS = [*(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "he", "ll", "hell", "hello", "Ġhello", "world", "<s>", "</s>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")]
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": len(WORDS) - 2,
    "eos_token_id": [len(WORDS) - 1],
    "pad_token_id": None,
    "torch_dtype": "float32",
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def tokenizer() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE({word: number for number, word in enumerate(WORDS)}, MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    library.enable_padding(length=16)
    library.enable_truncation(8)
    text: str = library.to_str()
    return text


def huggingface(folder: Path, shard_bytes: int = 10**9) -> None:
    """The model of all sources, drawn at random."""
    rng = np.random.default_rng(0)
    config = FAMILIES["llama"].read_config(CONFIG, {})  # type: ignore[arg-type]
    weights = {name: rng.normal(size=shape) for name, shape in model_weight_shapes(config).items()}
    given = _tensors("llama", config, {name: x.astype(np.float32) for name, x in weights.items()})
    save_checkpoint(folder, given, settings=CONFIG, shard_bytes=shard_bytes)
    (folder / "tokenizer.json").write_text(tokenizer())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": CONFIG["eos_token_id"]}))


class Given(dict[str, np.ndarray]):
    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self[name].shape, self[name].dtype.name)


def _tensors(family: str, config: ModelConfig, weights: dict[str, np.ndarray]) -> list[Any]:
    foreign = foreign_weights(family, config, Given(weights))
    return [(name, foreign.info(name), partial(foreign.__getitem__, name)) for name in foreign]


def ported(name: str, to: str, folder: Path, source: Path) -> None:
    port.write(port.plan(source, to), folder / name)


def compressed(folder: Path, source: Path) -> None:
    """As np.savez_compressed writes it, with the settings of a port."""
    import zipfile

    ported("whole.npz", "canonical", folder, source)
    with zipfile.ZipFile(folder / "whole.npz") as whole, zipfile.ZipFile(folder / "one.npz", "w") as packed:
        for member in whole.namelist():
            packed.writestr(member, whole.read(member), zipfile.ZIP_DEFLATED)
    (folder / "whole.npz").unlink()


def pickled(folder: Path, source: Path) -> None:
    import torch

    state = {name: torch.from_numpy(np.array(x)) for name, x in open_checkpoint(source).items()}
    (folder / "model").mkdir()
    torch.save(state, folder / "model" / "pytorch_model.bin")
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))


def meta(folder: Path, source: Path) -> None:
    """Two ranks."""
    import torch

    place = folder / "model"
    place.mkdir()
    config = read_model(open_checkpoint(source)).config
    stored = _tensors("meta.llama", config, dict(read_model(open_checkpoint(source)).weights))
    for rank in range(2):
        state = {}
        for name, _, read in stored:
            axis = {"wo": 1, "w2": 1}.get(name.split(".")[-2], 0)
            x = np.array(read())
            state[name] = torch.from_numpy(np.array(np.split(x, 2, axis)[rank] if x.ndim == 2 else x))
        torch.save(state, place / f"consolidated.{rank:02}.pth")
    params = {
        "dim": 24,
        "n_layers": 2,
        "n_heads": 6,
        "n_kv_heads": 2,
        "norm_eps": 1e-5,
        "vocab_size": -1,
        "rope_theta": 10000.0,
        "use_scaled_rope": False,
        "multiple_of": 4,
    }
    (place / "params.json").write_text(json.dumps(params))


def _byte_pairs(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - 2) + [3, 3])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(len(WORDS) - 2)
    writer.add_eos_token_id(len(WORDS) - 1)


def _sentencepiece(writer: Any) -> None:
    pieces = ["\u2581h", "he", "ll", "hell", "hello", "\u2581hello", "wo", "world", "\u2581", *"helowrd123"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(number) for number in range(len(pieces))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(True)


def gguf(folder: Path, source: Path, sentencepiece: bool = False) -> None:
    import gguf

    model = read_model(open_checkpoint(source))
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(20)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    (_sentencepiece if sentencepiece else _byte_pairs)(writer)
    for name, _, read in _tensors("gguf.llama", model.config, dict(model.weights)):
        writer.add_tensor(name, np.ascontiguousarray(read()))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


# Name -> how it is made in a folder from a folder of Hugging Face, and what in the folder is given to the command.
SOURCES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "huggingface": (lambda folder, source: huggingface(folder / "model"), "model"),
    "shards": (lambda folder, source: huggingface(folder / "model", 4000), "model"),
    "canonical": (partial(ported, "model", "canonical"), "model"),
    "flax": (partial(ported, "model", "flax"), "model"),
    "safetensors": (partial(ported, "one.safetensors", "canonical"), "one.safetensors"),
    "npz": (partial(ported, "one.npz", "canonical"), "one.npz"),
    "npz_compressed": (compressed, "one.npz"),
    "bin": (pickled, "model"),
    "meta": (meta, "model"),
    "gguf": (gguf, "one.gguf"),
    "gguf_sentencepiece": (partial(gguf, sentencepiece=True), "one.gguf"),
    "orbax": (partial(ported, "model.orbax", "canonical"), "model.orbax"),
}
