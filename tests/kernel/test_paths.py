"""Which path a call takes, that it really ran, and that every path gives what the oracle gives on the whole table."""

import dataclasses

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import compare
from conformance.cases.table import ALL_FEATURES, kernel_cases
from conformance.checks.expected import kernel_expected
from conformance.targets import Backend
from gqa_spec.settings import KernelSettings

CASES = {case.name: case for case in kernel_cases()}


def call_of(T, S, B=1, N=6, K=2, H=4, Hv=4, dtype="float64", **keywords):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, n, t, h)).astype(dtype) for n, t, h in ((N, T, H), (K, S, H), (K, S, Hv)))
    return inputs.Call(q, k, v, keywords.pop("mask", None), keywords)


# What is called, and the path that each backend takes for it, in the words of SPEC.md's table.
CALLS = {
    "one query": (call_of(1, 50), "blocked", "packed", "packed"),
    "one query, one KV head": (call_of(1, 50, K=1), "blocked", "packed", "packed"),
    "rows of different lengths": (
        call_of(1, 17000, B=2, causal=True, offset=np.array([16999, 9000])),
        "blocked",
        "packed by row",
        "packed",
    ),
    "one query with a softcap": (call_of(1, 50, softcap=3.0), "blocked", "plain", "packed"),
    "a causal pass": (call_of(50, 50, causal=True), "blocked", "fused", "packed"),
    "a chunk of a causal pass": (call_of(20, 50, causal=True), "blocked", "fused in blocks", "packed"),
    "a window": (call_of(50, 50, causal=True, window=7), "blocked", "fused in blocks", "packed"),
    "a long causal pass": (call_of(1200, 1200, causal=True), "blocked", "fused", "blocked"),
    "a long pass with sinks": (call_of(1200, 1200, sinks=np.zeros(6)), "blocked", "plain in blocks", "blocked"),
    "no queries": (call_of(0, 50), "blocked", "plain", "plain"),
}


@pytest.fixture
def ran(monkeypatch):
    """The names of the kernels that run, as they do."""
    import gqa_jax.attention
    import gqa_jax.fast
    import gqa_numpy.attention
    import gqa_torch.attention
    import gqa_torch.fast

    seen = []

    def spy(module, name):
        function = getattr(module, name)

        def spied(*arguments, **keywords):
            seen.append(name)
            return function(*arguments, **keywords)

        monkeypatch.setattr(module, name, spied)

    spy(gqa_numpy.attention, "blocked_attention")
    for name in ("packed", "packed_by_row", "fused", "blocked"):
        spy(gqa_torch.fast, name)
    for name in ("packed_attention", "blocked_attention"):
        spy(gqa_jax.fast, name)
    for module in (gqa_numpy, gqa_torch, gqa_jax):
        spy(module.attention, "plain_attention")
    return seen


RUNS = {  # the functions that a path shows in `ran`, apart from how often
    ("numpy", "blocked"): {"blocked_attention"},
    ("torch", "plain"): {"plain_attention"},
    ("torch", "plain in blocks"): {"plain_attention", "blocked"},
    ("torch", "packed"): {"packed"},
    ("torch", "packed by row"): {"packed", "packed_by_row", "blocked"},
    ("torch", "fused"): {"fused"},
    ("torch", "fused in blocks"): {"fused", "blocked"},
    ("jax", "plain"): {"plain_attention"},
    ("jax", "packed"): {"packed_attention"},
    ("jax", "blocked"): {"blocked_attention"},
}


@pytest.mark.parametrize("name", CALLS)
def test_the_path_that_is_said_is_the_path_that_runs(backend, ran, name, monkeypatch):
    import gqa_torch.fast

    monkeypatch.setattr(gqa_torch.fast, "cores", lambda device: 2)
    call, *paths = CALLS[name]
    path = dict(zip(("numpy", "torch", "jax"), paths, strict=True))[backend.name]
    to = backend.framework.to
    arguments, keywords = [to(x) for x in call.arguments], {n: to(x) for n, x in call.keywords.items()}
    assert backend.module.attention.choose_path(*arguments, KernelSettings(**keywords)).name == path
    backend.module.grouped_query_attention(*arguments, **keywords, need_weights=False)
    assert set(ran) == RUNS[backend.name, path]


def test_weights_come_from_the_plain_kernel(backend, ran):
    to = backend.framework.to
    backend.module.grouped_query_attention(*(to(x) for x in call_of(1, 50).arguments))
    assert ran == ["plain_attention"]


@pytest.fixture(
    params=[
        "numpy blocked",
        "torch blocks",
        "torch packed",
        "torch parts",
        "torch rows",
        "torch plain",
        "jax blocked",
        "jax packed",
    ]
)
def forced(request, monkeypatch):
    """A backend whose small calls are cut as only large ones are."""
    import gqa_jax.attention
    import gqa_jax.fast
    import gqa_numpy.fast
    import gqa_torch.attention
    import gqa_torch.fast

    match request.param:
        case "numpy blocked":
            monkeypatch.setattr(gqa_numpy.fast, "BLOCK_SCORES", 100)
        case "torch blocks":
            monkeypatch.setattr(gqa_torch.attention, "PACKED_QUERIES", 0)
            monkeypatch.setattr(gqa_torch.attention, "BLOCK_QUERIES", 3)
            for limit in ("CACHED_WEIGHTS", "BLOCK_WEIGHTS"):
                monkeypatch.setattr(gqa_torch.attention, limit, 300)
        case "torch packed" | "torch parts":
            cores = 1 if request.param == "torch packed" else 64  # more cores than KV heads: parts of a group share one
            monkeypatch.setattr(gqa_torch.fast, "cores", lambda device: cores)
        case "torch rows":
            monkeypatch.setattr(gqa_torch.attention, "ROW_BYTES", 0)
        case "torch plain":
            monkeypatch.setattr(gqa_torch.attention, "fusable", lambda *a: False)
            for limit in ("CACHED_WEIGHTS", "BLOCK_WEIGHTS"):
                monkeypatch.setattr(gqa_torch.attention, limit, 300)
        case "jax blocked":
            monkeypatch.setattr(gqa_jax.attention, "PACKED_ROWS", 0)
            monkeypatch.setattr(gqa_jax.attention, "PACKED_WEIGHTS", 0)
            monkeypatch.setattr(gqa_jax.fast, "BLOCK_ROWS", 6)
            monkeypatch.setattr(gqa_jax.fast, "BLOCK_KEYS", 4)
    return Backend(request.param.split()[0])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(ALL_FEATURES)])
def test_every_path_agrees_with_the_oracle_on_the_whole_table(forced, name):
    call = inputs.kernel_call(CASES[name], "float64")
    reference = kernel_expected("float64", call)
    unasked = dataclasses.replace(call, keywords={**call.keywords, "need_weights": False})
    context, _ = forced.attention(unasked)
    assert compare(context, reference.arrays[0], "float64", 1e-12).reason == ""


@pytest.mark.parametrize("offset", [None, -30, 5])
@pytest.mark.parametrize(
    "rule", [{}, {"window": 7}, {"window": 7, "causal": True}, {"chunk": 6}, {"causal": True}], ids=str
)
def test_blocks_that_do_not_divide_the_axes(forced, offset, rule):
    call = call_of(53, 51, **rule, **({} if offset is None else {"offset": offset}))
    reference = kernel_expected("float64", call)
    unasked = dataclasses.replace(call, keywords={**call.keywords, "need_weights": False})
    context, _ = forced.attention(unasked)
    assert compare(context, reference.arrays[0], "float64", 1e-12).reason == ""
