"""The three backends have the same modules, with the same public functions, methods and parameters.

Every difference is in one of the two tables, with its reason. Names with a leading underscore are each backend's own.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = ("numpy", "torch", "jax")
MODULES = (
    "masks",
    "rope",
    "norm",
    "plain",
    "fast",
    "attention",
    "cache",
    "decoding",
    "layer",
    "feed_forward",
    "experts",
    "block",
    "model",
    "precision",
)

# What a backend's objects are made with or put on; never compared.
FRAMEWORK_OPTIONS = {"rng", "rngs", "dtype", "param_dtype", "device", "like", "**options", "**attributes"}

# Public names that not every backend has: module, who has them, the names, why.
OWN_NAMES = (
    ("masks", "torch jax", "key_range", "gqa_numpy finds the range of a block in fast._blocks"),
    ("masks", "jax", "reach", "the range of keys as arrays: offsets may be traced"),
    ("rope", "numpy", "rotate_vjp", "gradients by hand"),
    ("norm", "numpy", "rms_norm_vjp qk_norm_vjp", "gradients by hand"),
    ("fast", "numpy jax", "blocked_attention", "the fast kernels are each backend's own"),
    ("fast", "jax", "packed_attention BlockSizes Head QueryBlock", "the fast kernels are each backend's own"),
    ("fast", "torch", "packed packed_by_row fused blocked zero_hidden_keys Block cores", "as above"),
    ("fast", "torch", "onnx_operator", "torch.onnx can export a call to ONNX's own operator"),
    ("attention", "torch", "onnx_expressible", "as above"),
    ("attention", "jax", "plain_context", "what a path runs"),
    (
        "attention",
        "torch",
        "plain_path plain_kernel fused_kernel fusable may_hide square",
        "what a path runs, and when",
    ),
    ("attention", "torch", "values_can_be_read is_finite", "eager calls check the result for NaN"),
    ("plain", "torch", "known_true", "eager calls leave out a pass where every row sees a key"),
    ("cache", "numpy jax", "KVCache.check_free_slots", "gqa_torch's DecodeStep knows the lengths of all layers"),
    ("cache", "numpy torch", "KVCache.lengths_to_keep", "writing in place, all layers are checked first"),
    ("cache", "numpy torch", "consume", "of two threads that extend one cache, one gets the error"),
    ("decoding", "torch", "DecodeStep DecodeStep.starts_at DecodeStep.cos_sin common", "work that layers share"),
    ("decoding", "torch", "Extension Extension.extended", "`extend` runs through `forward`, so that hooks run"),
    ("decoding", "torch", "known", "gqa_jax has it in `arrays`"),
    ("decoding", "torch", "check_free_slots", "a method of the cache elsewhere"),
    ("decoding", "torch jax", "fits", "under tracing a full row cannot raise"),
    ("layer", "numpy", "GroupedQueryAttention.vjp", "gradients by hand"),
    ("layer", "numpy jax", "GroupedQueryAttention.train GroupedQueryAttention.eval", "nn.Module has them"),
    (
        "layer",
        "torch",
        "GroupedQueryAttention.reset_parameters GroupedQueryAttention.extra_repr",
        "nn.Module's customs",
    ),
    ("layer", "torch", "GroupedQueryAttention.local_kv_heads", "a layer may be sharded in place"),
    ("norm", "torch", "Weight Weight.__init__ Weight.reset_parameters", "a parameter's canonical name needs a module"),
    ("layer", "jax", "available", "float64 depends on a switch"),
    (
        "feed_forward",
        "torch jax",
        "FeedForward FeedForward.__init__ FeedForward.__call__",
        "gqa_numpy has one dict of weights",
    ),
    ("feed_forward", "numpy", "feed_forward", "as above"),
    ("experts", "torch jax", "Experts Experts.__init__ Experts.__call__", "as above"),
    ("experts", "numpy", "mixture", "as above"),
    ("experts", "jax", "ExpertStack ExpertStack.__init__ ExpertStack.maps stacked", "one array for all experts"),
    ("block", "torch jax", "Norm Norm.__init__ Norm.__call__", "gqa_numpy has one dict of weights"),
    ("block", "numpy", "norm dropped", "what the frameworks' modules do elsewhere"),
    ("layer", "numpy", "GroupedQueryAttention.append", "`extend` of a cache that is checked and consumed"),
    ("block", "numpy", "Block.append", "as above"),
    ("block", "jax", "Block.extend", "gqa_torch's runs through `forward`, so that hooks run"),
    ("block", "torch", "applied Norm.reset_parameters", "modules that may be None; nn.Module's customs"),
    ("model", "numpy jax", "Transformer.train Transformer.eval", "nn.Module has them"),
    ("model", "torch", "Transformer.reset_parameters", "nn.Module's customs"),
    ("model", "jax", "compiled_step", "one program for each shape"),
    ("precision", "torch", "autocasts autocast_dtype without_autocast widened", "autocast"),
    ("precision", "jax", "matmul_precision", "float32 products need a request"),
)

# Parameters that differ between backends that all have the function: module, name, which may differ, why.
OWN_PARAMETERS = (
    ("fast", "blocked_attention", "block block_rows block_keys", "gqa_jax cuts the keys too"),
    ("attention", "choose_path", "finite_keys", "gqa_jax decides by it; gqa_torch reads it afterwards"),
    ("attention", "attend", "finite_keys", "gqa_numpy checks the result instead"),
    ("decoding", "append", "count step", "gqa_torch's step is what all layers share"),
    ("decoding", "fits", "count step", "as above"),
    ("decoding", "kernel_arguments", "T step", "as above"),
    ("layer", "GroupedQueryAttention.__call__", "extension", "`extend` runs through `forward`, so that hooks run"),
    ("block", "Block.__call__", "extension", "as above"),
    ("feed_forward", "FeedForward.__init__", "experts", "gqa_jax has one array for all experts"),
)


def signatures(module: Path) -> dict[str, list[str]]:
    """Public functions, classes and methods of a module, with the names of their parameters in order."""
    found = {}
    for node in ast.parse(module.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        found[node.name] = parameters(node) if isinstance(node, ast.FunctionDef) else []
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(method, ast.FunctionDef):
                name = "__call__" if method.name == "forward" else method.name
                if name in ("__init__", "__call__") or not name.startswith("_"):
                    found[f"{node.name}.{name}"] = parameters(method)
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return [name for name in names if name not in ("self", "cls", *FRAMEWORK_OPTIONS)]


@pytest.mark.parametrize("module", MODULES)
def test_the_backends_have_the_same_public_names(module):
    found = {backend: signatures(ROOT / f"gqa_{backend}" / f"{module}.py") for backend in BACKENDS}
    own = {name: set(who.split()) for where, who, names, _ in OWN_NAMES if where == module for name in names.split()}
    names = set().union(*found.values()) | set(own)
    differences = {name: {backend for backend in BACKENDS if name in found[backend]} for name in names}
    assert {name: who for name, who in differences.items() if who != set(BACKENDS)} == own


@pytest.mark.parametrize("module", MODULES)
def test_the_backends_have_the_same_parameters(module):
    found = [signatures(ROOT / f"gqa_{backend}" / f"{module}.py") for backend in BACKENDS]
    own = {name: set(which.split()) for where, name, which, _ in OWN_PARAMETERS if where == module}
    differences = {}
    for name in set().union(*found):
        lists = [functions[name] for functions in found if name in functions]
        common = set(lists[0]).intersection(*lists)
        assert len({tuple(p for p in each if p in common) for each in lists}) == 1, f"{name}: the order differs"
        if any(set(each) != common for each in lists):
            differences[name] = set().union(*lists) - common
    assert differences == own


def test_a_backend_has_no_further_modules_than_its_table_says():
    further = {
        "numpy": {"gradients", "layer_gradients", "linear"},
        "torch": {"arrays", "derivatives", "parallel", "parameters", "parts", "stages"},
        "jax": {"arrays", "dropout", "linear", "parallel", "parts"},
    }
    for backend in BACKENDS:
        modules = {path.stem for path in (ROOT / f"gqa_{backend}").glob("*.py")} - {"__init__"}
        assert modules == set(MODULES) | further[backend]
