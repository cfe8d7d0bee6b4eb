"""PyTorch's files, which are read without PyTorch, and Meta's folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from tests.helpers import assert_same_bits
from tests.weights.test_checkpoint import by_torch

pytestmark = pytest.mark.no_shape_checks


def test_metas_folder_is_read_with_its_parameters(tmp_path: Path) -> None:
    given = {"layers.0.attention.wq.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    by_torch(tmp_path, given, "consolidated.00.pth")
    (tmp_path / "params.json").write_text('{"n_heads": 5}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.settings == {"n_heads": 5}
    assert_same_bits(checkpoint, given, in_order=False)


META = {"dim": 12, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 8}
META_SHAPES = {
    "tok_embeddings.weight": (8, 12),
    "norm.weight": (12,),
    "output.weight": (8, 12),
    "rope.freqs": (3,),
    "layers.0.attention.wq.weight": (12, 12),
    "layers.0.attention.wk.weight": (6, 12),
    "layers.0.attention.wv.weight": (6, 12),
    "layers.0.attention.wo.weight": (12, 12),
    "layers.0.feed_forward.w1.weight": (16, 12),
    "layers.0.feed_forward.w2.weight": (12, 16),
    "layers.0.feed_forward.w3.weight": (16, 12),
    "layers.0.attention_norm.weight": (12,),
}


def cut(name: str, x: np.ndarray, rank: int, ranks: int, vocabulary: bool) -> np.ndarray:
    """What fairscale gives one rank."""
    module = name.split(".")[-2]
    if module in ("wk", "wv") and ranks > 2:  # more ranks than KV heads: neighbours hold the same one
        return np.split(x, 2)[rank // (ranks // 2)]
    rows = ["wq", "wk", "wv", "w1", "w3", "output"] + ["tok_embeddings"] * vocabulary
    columns = ["wo", "w2"] + ["tok_embeddings"] * (not vocabulary)
    if module in rows + columns:
        return np.split(x, ranks, axis=0 if module in rows else 1)[rank]
    return x


@pytest.mark.parametrize(("ranks", "vocabulary"), [(2, False), (2, True), (4, True)])
def test_the_files_of_several_ranks_are_joined(ranks: int, vocabulary: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {name: rng.normal(size=shape).astype(np.float32) for name, shape in META_SHAPES.items()}
    (tmp_path / "params.json").write_text(json.dumps(META))
    for rank in range(ranks):
        parts = {name: cut(name, x, rank, ranks, vocabulary) for name, x in whole.items()}
        by_torch(tmp_path, parts, f"consolidated.{rank:02}.pth")
    checkpoint = open_checkpoint(tmp_path)
    assert_same_bits(checkpoint, whole, in_order=False)
    assert all(checkpoint.info(name).shape == x.shape for name, x in whole.items())
    (tmp_path / "consolidated.00.pth").rename(tmp_path / f"consolidated.{ranks + 1:02}.pth")
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match=r"expected consolidated\.01\.pth, the file of one rank, got none"):
        open_checkpoint(tmp_path)


def test_ranks_that_disagree_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(META))
    for rank in range(2):
        by_torch(tmp_path, {"norm.weight": np.full(12, rank, np.float32)}, f"consolidated.{rank:02}.pth")
    with pytest.raises(CheckpointError, match=r"'norm\.weight': expected the same numbers in the file of each rank"):
        open_checkpoint(tmp_path)["norm.weight"]
    by_torch(tmp_path, {"other.weight": np.zeros(12, np.float32)}, "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: expected the tensors of consolidated\.00\.pth"):
        open_checkpoint(tmp_path)


def test_views_in_a_torch_file_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    """Transposed, sliced, repeated, of a big-endian machine; parameters; a state of OrderedDict with its metadata."""
    import torch

    x = torch.arange(7 * 12, dtype=torch.float32).reshape(7, 12).to(torch.bfloat16)
    state = {
        "transposed": x.T,
        "sliced": x[2:, 1::3],
        "repeated": x[:1].expand(5, 12),
        "scalar": x[3, 4],
        "parameter": torch.nn.Parameter(x.float()),
        "none": x[:0],
    }
    torch.save(state, tmp_path / "one.pt")
    assert_same_bits(
        open_checkpoint(tmp_path / "one.pt"), {name: _array(tensor) for name, tensor in state.items()}, in_order=False
    )
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    torch.save(module.state_dict(), tmp_path / "two.pt")
    expected = {name: _array(tensor) for name, tensor in module.state_dict().items()}
    assert_same_bits(open_checkpoint(tmp_path / "two.pt"), expected, in_order=False)
    assert open_checkpoint(tmp_path / "two.pt")["0.weight"].flags.writeable


def _array(tensor: Any) -> np.ndarray:
    import torch

    plain = tensor.detach().contiguous()
    bits = plain.view(torch.int16).numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
    return bits.view(ml_dtypes.bfloat16) if plain.dtype == torch.bfloat16 else bits
