"""Programs of users under `mypy --strict`: right ones pass, and a setting of the wrong type is found."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_torch import GroupedQueryAttention, KVCache, ModelCache, Transformer, grouped_query_attention, masks, merge

layer = GroupedQueryAttention(24, 6, 2, causal=True, window=7, rope=RopeConfig(), dtype=torch.float32)
same = GroupedQueryAttention.from_config(layer.config.replace(window=None), device="cpu")
rotated = GroupedQueryAttention(24, 6, 2, rope=True)
x = torch.ones(2, 5, 24)
output, weights = layer(x, mask=masks.causal(5, 5))
if weights is not None:
    weights.sum()
cache: KVCache = layer.init_cache(2, 8, rolling=True)
output, cache = layer.extend(x, cache)
layer.load_weights(layer.export_weights())
context, none = grouped_query_attention(x[None], x[None], x[None], need_weights=False)
context, logsumexp = merge([context], [torch.zeros(1, 2, 5)])

config: ModelConfig = ModelConfig.from_dict(ModelConfig.decoder(vocab_size=7, num_layers=2).to_dict())
again: AttentionConfig = config.attention[0]
model = Transformer(config)
caches: ModelCache = model.init_cache(2, 8).repeat(2).truncate(0)
logits, caches = model.extend(torch.ones(4, 1, dtype=torch.int64), caches)
"""
WRONG = {
    'GroupedQueryAttention(24, 6, causal="yes")': 'expected "bool"',
    "GroupedQueryAttention(24, 6, windw=3)": 'Unexpected keyword argument "windw"',
    'GroupedQueryAttention(24, 6, rope="half")': "incompatible type",
    'GroupedQueryAttention(24, 6, qk_norm="mean")': "incompatible type",
    "ModelConfig.decoder(vocab_size=None)": 'expected "int"',
    "model.init_cache(2, 8).repeat([2])": 'expected "int"',
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """mypy's errors, the right program first, then the wrong lines, in one run: it reads the packages once."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM + "\n".join(WRONG) + "\n")
    (folder / "mypy.ini").write_text(
        "[mypy]\nstrict = true\ndisallow_subclassing_any = false\n"
        "[mypy-torch.*,numpy.*,jaxtyping.*,ml_dtypes.*,einops.*,safetensors.*]\nfollow_imports = skip\n"
        "[mypy-gqa_*]\nfollow_imports = silent\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--cache-dir",
        str(ROOT / ".cache" / "mypy"),
        "program.py",
    ]
    done = subprocess.run(command, cwd=folder, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def line_of(message: str) -> int:
    return int(message.split(":")[1])


def test_a_right_program_passes(reported: list[str]) -> None:
    right = PROGRAM.count("\n")
    assert [message for message in reported if message.startswith("program.py") and line_of(message) <= right] == []


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_type_is_found(reported: list[str], wrong: str) -> None:
    line = PROGRAM.count("\n") + 1 + list(WRONG).index(wrong)
    found = [message for message in reported if message.startswith("program.py") and line_of(message) == line]
    assert any(WRONG[wrong] in message for message in found), found
