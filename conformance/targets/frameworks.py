"""How arrays get into a framework and out of it, bit for bit. A framework is imported on first use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conformance.targets.protocol import NotATarget

Array = np.ndarray


@dataclass(frozen=True)
class Framework:
    """to: a NumPy array (any dtype of SPEC 7, bool, integers) into the framework. back: out of it. options: the
    constructor keywords that fix a layer's dtype. build: makes a layer whose weights come next. call: how a user calls
    a layer, apply: how a user calls a function. pure: a layer as a function that may be differentiated. vjp: of a
    function of named arrays, the gradients at these by that of its result; None for a framework that has none.
    """

    name: str
    to: Callable[[Any], Any]
    back: Callable[[Any], Array]
    options: Callable[[str], dict[str, Any]]
    build: Callable[[Callable[[], Any]], Any]
    call: Callable[..., Any]
    apply: Callable[..., Any]
    pure: Callable[[Any], Callable[..., Any]] = lambda layer: layer
    vjp: Callable[[Callable[[dict[str, Any]], Any], dict[str, Any], Any], dict[str, Any]] | None = None


def available(name: str) -> bool:
    """Whether what a backend needs is installed."""
    needs = {"numpy": ("numpy",), "torch": ("torch",), "jax": ("jax", "flax")}
    return all(find_spec(package) is not None for package in needs[name])


def quick_to_compile() -> None:
    """For this process and those that it starts: one thread each, because several share the cores. Programs this small
    run no faster for LLVM's optimizer, which is a third of the time they take to compile.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def one_thread() -> None:
    """Once in every process that computes with our backends."""
    if available("torch"):
        import torch

        torch.set_num_threads(1)
    if available("jax"):
        import jax  # noqa: F401

        keep_compiled()


def keep_compiled() -> None:
    """JAX's programs are kept between runs: compiling them is most of a first run. Nothing where JAX is not in use."""
    jax: Any = sys.modules.get("jax")
    if jax is not None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gqa" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def set_x64(on: bool) -> None:
    """Whether JAX has float64. Nothing where JAX is not in use."""
    jax: Any = sys.modules.get("jax")
    if jax is not None:
        jax.config.update("jax_enable_x64", on)


@cache
def framework(name: str, device: str = "") -> Framework:
    """A framework whose arrays are made on a device: "cuda", "mps", "cpu:1"; empty for its default.

    Raises:
        NotATarget: where there is no such device.
    """
    try:
        return {"numpy": _numpy, "torch": _torch, "jax": _jax}[name](device)
    except (RuntimeError, ValueError, IndexError) as error:
        raise NotATarget(f"--device {device}: {name} has none: {str(error).splitlines()[0]}") from error


def _call(function: Any, *args: Any, **keywords: Any) -> Any:
    return function(*args, **keywords)


def _now(make: Callable[[], Any]) -> Any:
    return make()


def _numpy(device: str) -> Framework:
    if device not in ("", "cpu"):
        raise ValueError("its arrays are in main memory")

    def read_only(x: Any) -> Any:
        if isinstance(x, Array):
            x = x.view()
            x.flags.writeable = False  # a layer that writes into its arguments raises
        return x

    def options(dtype: str) -> dict[str, Any]:
        return {"dtype": ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype), "rng": np.random.default_rng()}

    return Framework("numpy", read_only, np.asarray, options, _now, _call, _call)


def _torch(device: str) -> Framework:
    import torch

    place = torch.device(device or "cpu")
    torch.zeros(1, device=place).cpu()  # raises where there is none, or none that holds numbers

    def to(x: Any) -> Any:
        if not isinstance(x, Array):
            return x
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(place)
        return torch.from_numpy(x.copy()).to(place)

    def back(x: Any) -> Array:
        x = x.detach().cpu().contiguous()
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()

    def call(layer: Any, *args: Any, **keywords: Any) -> Any:
        with torch.no_grad():
            return layer(*args, **keywords)

    def vjp(function: Callable[[dict[str, Any]], Any], arrays: dict[str, Any], d_result: Any) -> dict[str, Any]:
        leaves = {name: x.detach().requires_grad_() for name, x in arrays.items()}
        result = function(leaves)
        if not result.requires_grad:  # made for inference alone
            raise NotImplementedError("its output carries no gradient")
        found = torch.autograd.grad(result, list(leaves.values()), d_result, allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def options(dtype: str) -> dict[str, Any]:
        return {"dtype": getattr(torch, dtype)} | ({"device": place} if device else {})

    return Framework("torch", to, back, options, _now, call, call, vjp=vjp)


def _jax(device: str) -> Framework:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    kind, _, number = device.partition(":")
    there = jax.devices(kind) if device else []
    if device and int(number or 0) >= len(there):
        raise ValueError(f"there are {len(there)} of {kind}, counted from 0")
    place = there[int(number or 0)] if device else None

    def to(x: Any) -> Any:
        if not isinstance(x, Array):
            return x
        return jnp.asarray(x) if place is None else jax.device_put(jnp.asarray(x), place)

    @nnx.jit(static_argnames=("need_weights", "rope_length"))
    def call(layer: Any, *args: Any, **keywords: Any) -> Any:
        return layer(*args, **keywords)

    def apply(function: Any, *args: Any, **keywords: Any) -> Any:
        fixed = {name: x for name, x in keywords.items() if not hasattr(x, "shape")}
        arrays = {name: x for name, x in keywords.items() if hasattr(x, "shape")}
        return jax.jit(partial(function, **fixed))(*args, **arrays)

    def options(dtype: str) -> dict[str, Any]:
        return {"param_dtype": jnp.dtype(dtype), "rngs": nnx.Rngs(0)}

    def pure(layer: Any) -> Callable[..., Any]:
        graph, state = nnx.split(layer)
        return lambda *args, **keywords: nnx.merge(graph, state)(*args, **keywords)

    def vjp(function: Callable[[dict[str, Any]], Any], arrays: dict[str, Any], d_result: Any) -> dict[str, Any]:
        return jax.jit(lambda arrays, d_result: jax.vjp(function, arrays)[1](d_result)[0])(arrays, d_result)

    # Abstract: drawing initial values would compile a program for each shape, and they are replaced at once.
    return Framework("jax", to, np.asarray, options, nnx.eval_shape, call, apply, pure, vjp)
