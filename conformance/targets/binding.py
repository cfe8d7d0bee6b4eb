"""Whose parameter is what: the arguments of a call under the names that a function or class has for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conformance.targets.protocol import NotATarget, Unsupported

NAMES = ("query", "key", "value", "mask")
# Other names of a parameter. A name that is in no row is taken by its place, if it has no default.
OF_CALL = {
    "query": ("q", "queries", "x", "input", "inputs", "hidden_states", "hidden", "inputs_q"),
    "key": ("k", "keys", "inputs_k"),
    "value": ("v", "values", "inputs_v"),
    "mask": ("attn_mask", "attention_mask"),
    "causal": ("is_causal",),
    "scale": ("softmax_scale", "sm_scale", "scaling"),
    "softcap": ("soft_cap", "logits_soft_cap", "logit_softcap"),
    "window": ("sliding_window",),
    "sinks": ("sink", "s_aux", "attention_sinks"),
}
OF_CONSTRUCTOR = {
    "embed_dim": ("d_model", "dim", "hidden_size", "embed_size", "n_embd", "dim_model", "width", "in_features"),
    "num_heads": ("n_heads", "n_head", "heads", "num_attention_heads", "num_query_heads", "query_heads"),
    "num_kv_heads": ("n_kv_heads", "kv_heads", "num_key_value_heads", "n_kv_head", "num_kv_groups"),
    "head_dim": ("dim_head", "head_size", "d_head"),
    "kv_dim": ("kdim", "in_kv_features"),
    "causal": ("is_causal",),
    "window": ("sliding_window",),
    "softcap": ("logit_softcapping", "attn_logit_softcapping"),
    "rope": (),
}


ALONE = frozenset(("x", "input", "inputs", "hidden_states", "hidden"))  # of one input, which is key and value too
# What a parameter without a default is given where a case leaves it out; every other one is None.
LEFT_OUT = {"causal": False, "qkv_bias": False, "out_bias": False, "dropout": 0.0, "sinks": False}
KNOWN = (
    "chunk",
    "offset",
    "positions",
    "key_positions",
    "dropout_multiplier",
    "need_weights",
    "lengths",
    "rope_length",
    "qkv_bias",
    "out_bias",
    "dropout",
    "qk_norm",
    "qk_norm_eps",
    "v_head_dim",
    "dtype",
    "device",
    "rngs",
    "rng",
    "param_dtype",
    "output_gate",
    "qk_norm_after_rope",
    "sinks",
    "rope",
    "scale",
    "window",
    "softcap",
)


@dataclass(frozen=True)
class Binding:
    """positional: the role of each parameter that takes a place, "" for none. named: role -> the parameter's own name.
    anything: takes any keyword. needed: roles without a default. unknown: parameters without a default and a role.
    """

    positional: tuple[str, ...]
    named: Mapping[str, str]
    anything: bool = False
    needed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def takes(self, role: str) -> bool:
        return self.anything or role in self.positional or role in self.named

    def arguments(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords of a call.

        Raises:
            Unsupported: for a role that no parameter has.
            NotATarget: where a parameter is required that the suite has no value for.
        """
        if self.unknown:
            raise NotATarget(f"requires {', '.join(self.unknown)}, for which the suite has no value")
        missing = [role for role in given if not self.takes(role)]
        if missing:
            raise Unsupported(f"takes no {', '.join(missing)}")
        given = self._filled(given)
        last = max(
            (i for i, role in enumerate(self.positional) if role in given and role not in self.named), default=-1
        )
        args: list[Any] = []
        for i, role in enumerate(self.positional):
            if role not in given and i > last:
                break
            args.append(given.get(role))
        placed = set(self.positional[: len(args)])
        return tuple(args), {self.named.get(role, role): x for role, x in given.items() if role not in placed}

    def _filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """With what the case leaves out and the signature requires; a key is the query, a value the key."""
        full = dict(given)
        for role, other in (("key", "query"), ("value", "key")):
            if role in self.needed and role not in full:
                full[role] = full[other] if other in full else full["query"]
        return full | {role: LEFT_OUT.get(role) for role in self.needed if role not in full}


def binding(function: Any, others: Mapping[str, tuple[str, ...]], order: tuple[str, ...]) -> Binding:
    """The roles of a callable's parameters: by their names, else, without a default, by their places in `order`."""
    called = vars(function).get("__init__", function) if isinstance(function, type) else function  # past a metaclass
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # a function without a signature, of C say
        return Binding(order, {}, True)
    if isinstance(function, type) and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    roles = {name: role for role, names in others.items() for name in (role, *names)}
    roles |= {name: name for name in (*order, *KNOWN)}
    by_place = _by_place(parameters, roles, order)
    positional: list[str] = []
    named: dict[str, str] = {}
    needed: list[str] = []
    unknown: list[str] = []
    for p in parameters:
        role = by_place.get(p.name) or roles.get(p.name, "")
        if p.kind is p.VAR_KEYWORD:
            continue
        if p.kind is p.VAR_POSITIONAL:
            positional += [role for role in order if role not in positional and role not in named]
            continue
        if p.kind is not p.KEYWORD_ONLY:
            positional.append(role)
        if p.kind is not p.POSITIONAL_ONLY:
            named.setdefault(role or p.name, p.name)
        if p.default is p.empty:
            (needed if role else unknown).append(role or p.name)
    return Binding(
        tuple(positional), named, any(p.kind is p.VAR_KEYWORD for p in parameters), tuple(needed), tuple(unknown)
    )


def _by_place(parameters: list[inspect.Parameter], roles: Mapping[str, str], order: tuple[str, ...]) -> dict[str, str]:
    """The roles of parameters whose names say nothing. The first one is the query; of a layer with one input no other
    has a place.
    """
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not places or order != NAMES:
        return {}
    found = {} if places[0].name in roles else {places[0].name: order[0]}
    if places[0].name in ALONE or any(p.default is not p.empty or p.name in roles for p in places[1:3]):
        return found
    return {p.name: role for p, role in zip(places, order[:3], strict=False) if p.name not in roles}
