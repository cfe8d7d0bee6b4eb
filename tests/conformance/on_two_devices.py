"""In a process of its own, which has two devices: a function and a class of gqa_jax judged on the second one."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
import jax
import numpy as np

from conformance.checks import judge
from conformance.targets import NotATarget
from conformance.targets.frameworks import framework

CASE = "GQA 6 over 2 / causal"


def arrays_are_made_there():
    """The function's arrays and its result, under jit too."""
    kind, second = framework("jax", "cpu:1"), jax.devices("cpu")[1]
    given = [kind.to(np.ones((1, 1, 5, 4), np.float32)) for _ in range(3)]
    assert {d for x in (*given, kind.apply(lambda q, k, v: q * k + v, *given)) for d in x.devices()} == {second}


def judged():
    for name, arrays in (("gqa_jax:grouped_query_attention", "jax"), ("gqa_jax:GroupedQueryAttention", None)):
        options = judge.Options(arrays, {"device": "cpu:1"}, ("float32",), "quick", CASE)
        checks = judge.judge(name, options).checks
        assert {c.verdict for c in checks} == {"pass"}, checks
        assert all(c.seconds is not None and c.seconds > 0 for c in checks if c.quantity == "output")
        print(name, "passed on cpu:1")


def refused():
    try:
        framework("jax", "cpu:2")
    except NotATarget as error:
        print(error)


if __name__ == "__main__":  # a target's process imports this module again
    arrays_are_made_there()
    judged()
    refused()
