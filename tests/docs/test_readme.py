"""README.md and SPEC.md say what is true: their examples run, and the code they show is the code there is."""

from __future__ import annotations

import ast
import doctest
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import gqa_numpy
from conformance.cases.table import layer_cases
from conformance.checks.targets import target_checks
from conformance.targets import find_target
from gqa_spec import AttentionConfig
from gqa_weights import LAYOUTS, symbolic_shapes, to_canonical
from tests.helpers import normal

ROOT = Path(__file__).parents[2]
README, SPEC = (ROOT / "README.md").read_text(), (ROOT / "SPEC.md").read_text()
NEEDS = {"gqa_torch": ("torch",), "gqa_jax": ("jax", "flax"), "my_module": ("torch",)}

pytestmark = [pytest.mark.no_shape_checks, pytest.mark.x64_off]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def block_starting(start: str) -> str:
    return next(block for block in blocks(README) if block.startswith(start))


def skip_without(block: str) -> None:
    needed = {package for module, packages in NEEDS.items() if module in block for package in packages}
    for package in sorted(needed):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def run(example: str, namespace: dict[str, object]) -> None:
    """Every doctest of the example; the fence that ends it is not part of what it prints."""
    parsed = doctest.DocTestParser().get_doctest(example, {}, "example", None, 0)
    parsed.globs = namespace  # not a copy of it: a later example goes on from there
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    printed: list[str] = []
    runner.run(parsed, out=printed.append, clear_globs=False)
    assert runner.failures == 0, "".join(printed)


@pytest.mark.parametrize("example", [pytest.param(b, id=b.split("\n")[0]) for b in blocks(README) if ">>>" in b])
def test_readme_examples_print_what_they_say(example):
    skip_without(example)
    run(example, {})


def test_spec_examples_print_what_they_say():
    namespace: dict[str, object] = {}
    for example in blocks(SPEC):
        run(example, namespace)


def test_readme_has_a_quickstart_for_each_backend_and_the_way_between_them():
    examples = "".join(block for block in blocks(README) if ">>>" in block)
    for backend in ("gqa_numpy", "gqa_torch", "gqa_jax"):
        assert f"from {backend} import GroupQueryAttention" in examples
    assert "load_weights" in examples
    assert "export_weights" in examples


def test_readme_shows_the_kernel_that_there_is():
    source = (ROOT / "gqa_numpy" / "plain.py").read_text()
    for function in ("plain_attention", "softmax"):
        assert block_starting(f"def {function}(") in source


def test_spec_numbers_its_clauses_from_1_to_19():
    assert re.findall(r"^## (\d+)\. ", SPEC, flags=re.MULTILINE) == [str(n) for n in range(1, 20)]


def test_clauses_that_are_cited_exist():
    cited = set()
    for path in (path for folder in ("gqa_*", "conformance") for path in ROOT.glob(f"{folder}/**/*.py")):
        cited |= set(re.findall(r"SPEC (\d+)", path.read_text()))
    assert cited <= {str(n) for n in range(1, 20)}


@pytest.mark.parametrize("kind", ["rms", "rms_full"])
def test_spec_names_every_weight_and_its_shape(kind):
    config = AttentionConfig(embed_dim=8, num_heads=2, qkv_bias=True, out_bias=True, qk_norm=kind, sinks=True)
    table = SPEC.partition("## 16.")[2].partition("## 17.")[0]
    for name, shape in symbolic_shapes(config).items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"({shape})" in row


def test_readme_class_passes_what_it_can_be_asked(tmp_path, monkeypatch):
    """As `gqa conform --target my_module:MyAttention` runs it, on fewer cases."""
    skip_without("my_module")
    (tmp_path / "my_module.py").write_text(block_starting("# my_module.py"))
    monkeypatch.chdir(tmp_path)
    target = find_target("my_module:MyAttention", None)
    asked = [case for case in layer_cases() if case.grouping in ("MHA 3", "GQA 6 over 2", "GQA 12 over 3", "MQA 2")]
    checks = [check for case in asked for check in target_checks(case, "float64", target) if check is not None]
    assert {check.verdict for check in checks} == {"pass", "unsupported"}
    passed = {check.case.partition(" / ")[2] for check in checks if check.verdict == "pass"}
    assert passed == {"square", "square causal", "square mask"}


# --- the "coming from" table -----------------------------------------------------------------------------------------

B, T, S, D, N, K = 2, 5, 7, 24, 6, 2


def ours(layout: str, foreign: dict[str, np.ndarray], num_kv_heads: int = K, **settings: object):
    """The NumPy backend with another module's weights."""
    layer = gqa_numpy.GroupQueryAttention(
        D, N, num_kv_heads, qkv_bias=True, out_bias=True, dtype=np.float32, **settings
    )
    return layer.eval().load_weights(to_canonical(LAYOUTS[layout], foreign, layer.config))


def close(got: np.ndarray, expected: object) -> None:
    np.testing.assert_allclose(got, np.asarray(expected), atol=5e-6)


def test_coming_from_torch_multihead_attention():
    torch = pytest.importorskip("torch")
    mha = torch.nn.MultiheadAttention(D, N, batch_first=True).eval().requires_grad_(False)
    state = {name: x.numpy() for name, x in mha.state_dict().items()}
    attn, causal = (ours("torch.nn.MultiheadAttention", state, N, causal=c) for c in (False, True))
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    hidden = normal(B, N, T, S) > 1

    per_head = torch.from_numpy(hidden.reshape(B * N, T, S))
    output, weights = mha(*tensors, attn_mask=per_head)
    close(attn(q, k, v, ~hidden)[0], output)
    close(attn(q, k, v, ~hidden)[1].mean(1), weights)
    padding = np.arange(S) >= np.array([[4], [6]])
    close(attn(q, k, v, ~padding[:, None, None])[0], mha(*tensors, key_padding_mask=torch.from_numpy(padding))[0])
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    close(causal(q)[0], mha(tensors[0], tensors[0], tensors[0], attn_mask=future, is_causal=True)[0])


def test_coming_from_flax_multi_head_attention():
    nnx = pytest.importorskip("flax.nnx")
    mha = nnx.MultiHeadAttention(
        N, D, qkv_features=N * 8, num_kv_heads=K, decode=False, deterministic=True, rngs=nnx.Rngs(0)
    )
    state = {".".join(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(mha, nnx.Param))}
    attn, causal = (ours("flax.nnx.MultiHeadAttention", state, head_dim=8, causal=c) for c in (False, True))
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    mask = normal(B, 1, T, S) < 1
    close(attn(q, k, v, mask)[0], mha(q, k, v, mask=mask))
    close(causal(q, k, v, offset=0)[0], mha(q, k, v, is_causal=True))


def test_coming_from_keras_group_query_attention(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layer = keras.layers.GroupQueryAttention(8, N, K)
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    mask = normal(B, T, S) < 1
    output, scores = layer(q, v, k, attention_mask=mask, return_attention_scores=True)
    paths = [x.path.split("/")[-2:] for x in layer.weights]
    state = {
        f"{'out' if owner == 'attention_output' else owner}.{kind}": np.asarray(x)
        for (owner, kind), x in zip(paths, layer.weights, strict=True)
    }
    attn, causal = (ours("flax.nnx.MultiHeadAttention", state, head_dim=8, causal=c) for c in (False, True))
    close(attn(q, k, v, mask[:, None])[0], output)
    close(attn(q, k, v, mask[:, None])[1], scores)
    close(causal(q, k, v, offset=0)[0], layer(q, v, k, use_causal_mask=True))


# --- rooms -----------------------------------------------------------------------------------------------------------


def test_readme_says_which_rooms_there_are():
    for module in ("masks", "rope", "norm", "plain", "fast", "attention", "cache", "layer"):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{module}` |"))
        for backend, cell in zip(("numpy", "torch", "jax"), row.split("|")[3:6], strict=True):
            exists = (ROOT / f"gqa_{backend}" / f"{module}.py").exists()
            assert cell.strip() == ("yes" if exists else "not yet"), f"{module} of gqa_{backend}"


def test_spec_names_every_path():
    table = SPEC.partition("## Which path is taken")[2]
    for backend in ("numpy", "torch", "jax"):
        module = ast.parse((ROOT / f"gqa_{backend}" / "attention.py").read_text())
        functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "choose_path"]
        returns = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Return)]
        values = [node.value for top in returns for node in ast.walk(top) if isinstance(node, ast.Constant)]
        for path in (value for value in values if isinstance(value, str)):
            assert f"| gqa_{backend} | `{path}` |" in table or f"| each | `{path}` |" in table
