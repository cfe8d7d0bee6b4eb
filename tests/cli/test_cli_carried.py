"""What a port carries along: settings, ids of special tokens, the tokenizer; and what it refuses to write over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights.checkpoint import open_checkpoint
from gqa_weights.port import open_model
from tests.cli.checkpoints import GEMMA3, LLAMA, edited, ok, refused, run, saved

pytestmark = pytest.mark.no_shape_checks
transformers = pytest.importorskip("transformers")

IDS = {"bos_token_id": 3, "eos_token_id": [5, 7], "pad_token_id": 9}
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "merges.txt")


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def source(llama: Path, tmp_path: Path) -> Path:
    """A llama folder with a tokenizer and settings of its own."""
    folder = edited(llama, tmp_path / "source", {**IDS, "initializer_range": 0.5, "torch_dtype": "float32"})
    for name in FILES:
        (folder / name).write_text(json.dumps({"eos_token_id": [5, 7], "name": name}))
    (folder / "README.md").write_text("not of the model")
    return folder


@pytest.mark.parametrize("through", ["huggingface", "canonical", "meta", "flax"])
def test_ids_settings_and_tokenizer_travel_through_every_layout(through: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    output = ok("port", source, dest, "--to", through).stdout
    if through not in ("huggingface", "meta"):
        ok("port", dest, tmp_path / "back", "--to", "huggingface")
        dest = tmp_path / "back"
    assert {path.name for path in dest.iterdir()} >= set(FILES)
    assert not (dest / "README.md").exists()
    assert all((dest / name).read_bytes() == (source / name).read_bytes() for name in FILES)
    assert "carried along: " + ", ".join(sorted(FILES)) in output
    if through != "meta":  # whose params.json has no place for them
        assert {name: settings(dest)[name] for name in (*IDS, "initializer_range")} == {**IDS, "initializer_range": 0.5}


def test_the_stated_dtype_is_that_of_the_port(source: Path, tmp_path: Path) -> None:
    ok("port", source, tmp_path / "same", "--to", "huggingface")
    ok("port", source, tmp_path / "half", "--to", "huggingface", "--dtype", "bfloat16")
    assert (settings(tmp_path / "same")["torch_dtype"], settings(tmp_path / "half")["torch_dtype"]) == (
        "float32",
        "bfloat16",
    )


@pytest.mark.parametrize("family", ["phi3", "smollm3", "llama", "gemma2"])
def test_a_model_without_stated_ids_loads_with_a_small_vocabulary(family: str, tmp_path: Path) -> None:
    """transformers gives Phi-3 a padding token 32000 where none is stated, which no small embedding has."""
    classes = {"phi3": "Phi3", "smollm3": "SmolLM3", "llama": "Llama", "gemma2": "Gemma2"}
    options = {**LLAMA, **dict.fromkeys(IDS), "head_dim": 12}
    if family == "gemma2":
        options["layer_types"] = ["full_attention"] * 2
    config = getattr(transformers, f"{classes[family]}Config")(**options)
    folder = saved(tmp_path / "model", getattr(transformers, f"{classes[family]}ForCausalLM")(config))
    ok("port", folder, tmp_path / "canonical", "--to", "canonical")
    manifest = tmp_path / "canonical" / "gqa_manifest.json"
    stated = json.loads(manifest.read_text())
    del stated["settings"]  # as of a source that states nothing
    manifest.write_text(json.dumps(stated))
    ok("port", tmp_path / "canonical", tmp_path / "back", "--to", "huggingface")
    model = getattr(transformers, f"{classes[family]}ForCausalLM").from_pretrained(tmp_path / "back")
    assert model.config.vocab_size == 41
    assert settings(tmp_path / "back")["eos_token_id"] is None


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3"])
def test_full_layers_alone_write_no_null_window(family: str, tmp_path: Path) -> None:
    text = "Text" if family == "Gemma3" else ""
    options = {**GEMMA3, "layer_types": ["full_attention"] * 3}
    config = getattr(transformers, f"{family}{text}Config")(**options)
    model = getattr(transformers, f"{family}ForCausalLM")
    folder = saved(tmp_path / "model", model(config))
    ok("port", folder, tmp_path / "dest", "--to", "huggingface")
    assert settings(tmp_path / "dest").get("sliding_window", 1) is not None
    model.from_pretrained(tmp_path / "dest")
    ok("verify", folder, tmp_path / "dest")


def test_a_single_file_has_no_place_for_a_tokenizer(source: Path, tmp_path: Path) -> None:
    output = ok("port", source, tmp_path / "one.npz", "--to", "canonical").stdout
    assert "note: a single file has no place for chat_template.jinja" in output


# --- what is refused, what is only said ------------------------------------------------------------------------------


def test_a_source_inside_the_destination_is_refused_and_kept(llama: Path, tmp_path: Path) -> None:
    outer = tmp_path / "d"
    shutil.copytree(llama, outer)
    shutil.copytree(llama, outer / "checkpoint-500")
    before = {path: path.read_bytes() for path in outer.rglob("*") if path.is_file()}
    for source, dest, said in (
        (outer / "checkpoint-500", outer, "the source is inside the destination"),
        (outer, outer / "new", "the destination is inside the source"),
        (outer / "checkpoint-500", tmp_path / "elsewhere" / ".." / "d", "the source is inside the destination"),
    ):
        result = run("port", source, dest, "--to", "huggingface", "--force")
        assert result.exit_code == 2
        assert said in result.stderr
    assert {path: path.read_bytes() for path in outer.rglob("*") if path.is_file()} == before
    ok("port", outer, outer, "--to", "canonical", "--force")  # over itself
    assert {path: path.read_bytes() for path in (outer / "checkpoint-500").iterdir()} == {
        path: data for path, data in before.items() if path.parent.name == "checkpoint-500"
    }


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    found = json.loads(
        ok("port", source, dest, "--to", "meta", "--dry-run", "--shard-size", "40KB", "--json", "-").stdout
    )
    assert found["dry_run"]
    assert not dest.exists()
    assert found["bytes"] == sum(x.nbytes for x in open_checkpoint(source).values())
    assert found["free_bytes"] > 0
    ok("port", source, dest, "--to", "meta", "--shard-size", "40KB")
    written = sorted(path.name for path in dest.iterdir())
    assert written == sorted(
        [*found["weights"], *found["carried"], "params.json", "gqa_manifest.json", "model.safetensors.index.json"]
    )
    assert all((dest / name).stat().st_size < 60_000 for name in found["weights"])
    assert (
        "nothing was written; the disk has"
        in ok("pool", source, tmp_path / "x", "--num-kv-heads", 1, "--dry-run").stdout
    )
    result = run("port", source, dest, "--to", "meta", "--dry-run")
    assert result.exit_code == 2
    assert "exists; --force overwrites it" in result.stderr
    for size in ("0", "5XB", "-1GB", "1.5GB"):
        refused(
            run("port", source, tmp_path / "y", "--to", "meta", "--shard-size", size), tmp_path / "y", "--shard-size"
        )


@pytest.mark.parametrize("name", ["dest", "one.safetensors", "one.npz", "tree.orbax"])
def test_checksums_find_what_was_changed_since(name: str, llama: Path, tmp_path: Path) -> None:
    dest = tmp_path / name
    ok("port", llama, dest, "--to", "canonical")
    assert "21 of 21 tensors are as they were written" in ok("inspect", dest, "--checksums").stdout
    if name == "dest":
        file = dest / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
        result = run("inspect", dest, "--checksums")
        assert result.exit_code == 1
        assert "20 of 21 tensors are as they were written" in result.stdout
    ok("port", llama, tmp_path / "plain", "--to", "canonical", "--no-checksums")
    assert "no manifest states checksums" in ok("inspect", tmp_path / "plain", "--checksums").stdout
    found = json.loads(ok("inspect", tmp_path / "plain", "--checksums", "--json", "-").stdout)
    assert len(found["sha256"]) == 21


# --- rounding --------------------------------------------------------------------------------------------------------


def test_norms_stored_as_1_plus_w_are_float32_where_the_rest_is_16_bit(gemma3: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    ok("port", gemma3, half, "--to", "huggingface", "--dtype", "bfloat16")
    for options in ((), ("--dtype", "bfloat16")):
        dest = tmp_path / f"megatron{len(options)}"
        output = ok("port", half, dest, "--to", "megatron", *options).stdout
        assert "note: 6 norm weights, stored as 1 + w, are in float32" in output
        stored = open_checkpoint(dest)
        assert stored.info("blocks.0.attention.q_layernorm.weight").dtype == "float32"
        assert stored.info("blocks.0.attention.linear_qkv.weight").dtype == "bfloat16"
        assert json.loads((dest / "gqa_manifest.json").read_text())["dtype"] == "bfloat16, float32"
        ours, theirs = open_model(half).weights, open_model(dest).weights
        name = "blocks.0.attention.q_norm.weight"
        np.testing.assert_array_equal(theirs[name], ours[name].astype(np.float32))
        ok("verify", half, dest)


def test_an_overflow_is_found_beside_an_infinity(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weight = np.array(open_checkpoint(llama)[name])
    weight[0, 0], weight[1, 1] = np.inf, 1e6
    source = edited(llama, tmp_path / "source", **{name: weight})
    result = run("port", source, tmp_path / "dest", "--to", "huggingface", "--dtype", "float16")
    refused(result, tmp_path / "dest", name, "1 of its values do not fit float16")


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: Any, llama: Path, tmp_path: Path) -> None:
    import torch

    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(llama / "config.json", source)
    state = {name: torch.from_numpy(np.array(x)) for name, x in open_checkpoint(llama).items()}
    state["model.norm.weight"] = torch.from_numpy(np.ones(72).astype(dtype))
    torch.save(state, source / "pytorch_model.bin")
    for command in (("port", source, tmp_path / "dest", "--to", "meta"), ("verify", source, llama)):
        refused(run(*command), tmp_path / "dest", "model.norm.weight expected float16", np.dtype(dtype).name)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", int("1" + "0" * 400), "expected a finite number"),
        ("sliding_window", 2**63, "expected an integer"),
        ("sliding_window", 2**31, "expected an integer >= 1 and <= 2147483647"),
        ("vocab_size", 10**30, "expected an integer"),
    ],
)
def test_integers_that_no_backend_holds_are_refused(key: str, value: int, said: str, tmp_path: Path) -> None:
    config = transformers.MistralConfig(**LLAMA, sliding_window=5)
    folder = saved(tmp_path / "model", transformers.MistralForCausalLM(config))
    values = settings(folder)
    values.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps({**values, key: value}))
    for command in (("inspect", folder), ("port", folder, tmp_path / "dest", "--to", "canonical")):
        refused(run(*command), tmp_path / "dest", key, said)


@pytest.mark.parametrize("layout", ["megatron", "deepmind.gemma"])
def test_a_norm_over_all_heads_is_not_written_where_each_head_is_normed(layout: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "olmo2", transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**LLAMA)))
    refused(
        run("port", folder, tmp_path / "dest", "--to", layout),
        tmp_path / "dest",
        "expected a QK-norm over head, got qk_norm = rms_full",
    )
