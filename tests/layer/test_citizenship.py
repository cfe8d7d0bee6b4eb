"""Our modules are ordinary citizens of their frameworks: one test for each thing that users do to a module."""

import copy

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import error_of
from conformance.cases.table import ALL_FEATURES, layer_cases
from conformance.targets import Backend

pytestmark = pytest.mark.no_shape_checks
WHOLE = next(case for case in layer_cases() if case.name == f"{ALL_FEATURES} / whole layer")
CALL = inputs.layer_call(WHOLE, "float64")


def loaded(name):
    layer = Backend(name).layer(WHOLE.config, "float64")
    layer.load(inputs.weights(WHOLE, "float64"))
    return layer.module


@pytest.fixture
def torch_layer():
    return loaded("torch")


@pytest.fixture
def torch_call():
    import torch

    return [torch.from_numpy(x) for x in CALL.arguments]


@pytest.fixture
def jax_layer():
    return loaded("jax")


@pytest.fixture
def jax_call():
    import jax.numpy as jnp

    return [jnp.asarray(x) for x in CALL.arguments]


class TestTorch:
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_compile_without_graph_breaks(self, torch_layer, torch_call, need_weights):
        import torch

        torch._dynamo.reset()
        compiled = torch.compile(torch_layer, fullgraph=True, backend="aot_eager")
        got, expected = compiled(*torch_call, need_weights=need_weights), torch_layer(*torch_call)
        assert error_of(got[0].detach().numpy(), expected[0].detach().numpy()) <= 1e-12

    def test_export(self, torch_layer, torch_call):
        import torch

        program = torch.export.export(torch_layer, tuple(torch_call))
        got, expected = program.module()(*torch_call), torch_layer(*torch_call)
        assert error_of(got[0].detach().numpy(), expected[0].detach().numpy()) <= 1e-12

    def test_autocast(self, torch_layer, torch_call):
        import torch

        exact = torch_layer(*torch_call)[0]
        layer, call = torch_layer.float(), [x.float() for x in torch_call]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, weights = layer(*call)
        assert output.dtype == weights.dtype == torch.bfloat16
        assert error_of(output.detach().float().numpy(), exact.detach().numpy()) < 0.05

    def test_functional_gradients(self, torch_layer, torch_call):
        import torch

        parameters = dict(torch_layer.named_parameters())

        def loss(parameters):
            return torch.func.functional_call(torch_layer, parameters, tuple(torch_call))[0].square().sum()

        gradients = torch.func.grad(loss)(parameters)
        loss(parameters).backward()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(gradients[name].detach().numpy(), parameter.grad.numpy(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_vmap(self, torch_layer, torch_call, need_weights):
        import torch

        query, key, value, mask = torch_call
        stacked = torch.stack([query, 2 * query, -query])
        got = torch.func.vmap(lambda q: torch_layer(q, key, value, mask, need_weights=need_weights)[0])(stacked)
        for g, q in zip(got, stacked, strict=True):
            expected = torch_layer(q, key, value, mask)[0]
            assert error_of(g.detach().numpy(), expected.detach().numpy()) <= 1e-12

    def test_deepcopy_is_independent(self, torch_layer, torch_call):
        import torch

        twin = copy.deepcopy(torch_layer)
        assert torch.equal(twin(*torch_call)[0], torch_layer(*torch_call)[0])
        with torch.no_grad():
            twin.q_proj.weight.zero_()
        assert torch_layer.q_proj.weight.any()

    def test_state_dict_has_the_canonical_names(self, torch_layer, torch_call):
        import torch

        state = torch_layer.state_dict()
        assert set(state) == set(inputs.weights(WHOLE, "float64"))
        other = type(torch_layer).from_config(WHOLE.config, dtype=torch.float64).eval()
        other.load_state_dict(state)
        assert torch.equal(other(*torch_call)[0], torch_layer(*torch_call)[0])

    def test_meta_device_and_to_empty(self, torch_layer, torch_call):
        import torch

        layer = type(torch_layer).from_config(WHOLE.config, dtype=torch.float64, device="meta").eval()
        assert all(parameter.is_meta for parameter in layer.parameters())
        assert layer(*(x.to("meta") for x in torch_call))[0].is_meta
        layer = layer.to_empty(device="cpu")
        layer.reset_parameters()
        assert all(parameter.isfinite().all() for parameter in layer.parameters())
        layer.load_state_dict(torch_layer.state_dict())
        assert torch.equal(layer(*torch_call)[0], torch_layer(*torch_call)[0])

    def test_hooks_see_the_projections(self, torch_layer, torch_call):
        seen = []
        torch_layer.q_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        torch_layer(*torch_call)
        assert seen == [(WHOLE.B, WHOLE.T, WHOLE.config.num_heads * WHOLE.config.head_dim)]


class TestJax:
    def test_split_and_merge(self, jax_layer, jax_call):
        from flax import nnx

        graph, state = nnx.split(jax_layer)
        twin = nnx.merge(graph, state)
        np.testing.assert_array_equal(np.asarray(twin(*jax_call)[0]), np.asarray(jax_layer(*jax_call)[0]))
        leaves = nnx.to_flat_state(nnx.state(jax_layer, nnx.Param))
        assert len(list(leaves)) == len(inputs.weights(WHOLE, "float64"))

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_vmap(self, jax_layer, jax_call, need_weights):
        import jax
        import jax.numpy as jnp

        query, key, value, mask = jax_call
        stacked = jnp.stack([query, 2 * query])

        def attend(q):
            return jax_layer(q, key, value, mask, need_weights=need_weights)[0]

        for got, q in zip(jax.jit(jax.vmap(attend))(stacked), stacked, strict=True):
            assert error_of(np.asarray(got), np.asarray(jax_layer(q, key, value, mask)[0])) <= 1e-12

    def test_vmap_over_offsets(self):
        import jax

        attention = Backend("jax").module.grouped_query_attention
        rng = np.random.default_rng(0)
        q, k = (jax.numpy.asarray(rng.normal(size=(1, 2, n, 4))) for n in (3, 9))
        offsets = jax.numpy.array([0, 5, -2])

        def attend(offset, need_weights=True):
            return attention(q, k, k, causal=True, window=3, offset=offset, need_weights=need_weights)[0]

        for need_weights in (True, False):
            got = jax.vmap(lambda offset: attend(offset, need_weights))(offsets)  # noqa: B023
            for g, offset in zip(got, (0, 5, -2), strict=True):
                np.testing.assert_allclose(np.asarray(g), np.asarray(attend(offset)), atol=1e-14)

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_checkpoint(self, jax_layer, jax_call, need_weights):
        import jax
        from flax import nnx

        def loss(module, *arguments):
            return (module(*arguments, need_weights=need_weights)[0] ** 2).sum()

        plain = nnx.jit(nnx.grad(loss))(jax_layer, *jax_call)
        remat = nnx.jit(nnx.grad(nnx.remat(loss)))(jax_layer, *jax_call)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
            assert error_of(np.asarray(b), np.asarray(a)) <= 1e-11

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_no_nan_is_ever_made(self, need_weights):
        """jax_debug_nans: an empty row, a huge sink and a hidden key, forward and backward."""
        import jax
        import jax.numpy as jnp

        attention = Backend("jax").module.grouped_query_attention
        rng = np.random.default_rng(0)
        q, k = (jnp.asarray(rng.normal(size=(2, n, 5, 4))) for n in (6, 2))
        mask = jnp.asarray(np.eye(5, dtype=bool)).at[2].set(False)
        sinks = jnp.asarray([1e3, -jnp.inf, 0, 0, 1, 2])

        def loss(q, k, v, sinks):
            keywords = {"mask": mask, "sinks": sinks, "softcap": 5.0, "need_weights": need_weights}
            return attention(q, k, v, **keywords)[0].sum()

        with jax.debug_nans(True):
            gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, k, sinks)
        assert all(np.isfinite(g).all() for g in gradients)

    def test_strict_dtype_promotion(self, jax_layer, jax_call):
        import jax

        expected = jax_layer(*jax_call)
        with jax.numpy_dtype_promotion("strict"):
            got = jax_layer(*jax_call)
        np.testing.assert_array_equal(np.asarray(got[0]), np.asarray(expected[0]))

    def test_traced_settings_give_the_same(self):
        """scale, softcap, offset and the mask as arrays under jit."""
        import jax

        attention = Backend("jax").module.grouped_query_attention
        rng = np.random.default_rng(0)
        q, k = (jax.numpy.asarray(rng.normal(size=(2, n, 5, 4))) for n in (6, 2))

        def attend(scale, softcap, offset):
            return attention(q, k, k, causal=True, window=3, scale=scale, softcap=softcap, offset=offset)[0]

        traced = jax.jit(attend)(0.7, 2.0, 1)
        np.testing.assert_allclose(np.asarray(traced), np.asarray(attend(0.7, 2.0, 1)), atol=1e-14)


def test_a_numpy_layer_can_be_copied_and_pickled():
    import pickle

    layer = loaded("numpy")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(twin(*CALL.arguments)[0], layer(*CALL.arguments)[0])


def test_a_numpy_layer_shows_its_settings():
    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2, 0.1, causal=True, dtype="float32")
    expected = (
        "GroupedQueryAttention(embed_dim=24, num_heads=6, num_kv_heads=2, dropout=0.1, causal=True, dtype=float32)"
    )
    assert repr(layer) == expected


def test_dropout_of_a_numpy_layer_may_be_set_and_never_acts_in_extend():
    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2, 0.5, causal=True)
    x = np.random.default_rng(0).normal(size=(2, 5, 24))
    exact = layer.eval()(x)[0]
    assert error_of(layer.train()(x)[0], exact) > 1e-3
    assert error_of(layer.extend(x, layer.init_cache(2, 5))[0], exact) <= 1e-12
    layer.dropout = 0.0
    np.testing.assert_array_equal(layer(x)[0], exact)


def test_a_numpy_layer_of_float64_names_both_remedies_for_float32():
    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2)
    sentence = "got float32: cast the input to float64, or make the layer with dtype float32"
    with pytest.raises(TypeError, match=sentence):
        layer(np.ones((1, 2, 24), np.float32))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"q_proj": 12}, "q_proj: expected G = 3 query heads for each of 2 KV heads, got 3"),
        ({"k_proj": 4}, "v_proj: expected as many heads as k_proj, 1 of Hv = 4, got 2"),
        ({"q_proj": 10}, "q_proj: expected a width that H = 4 divides, got 10"),
    ],
    ids=str,
)
def test_a_pruned_numpy_layer_whose_widths_disagree_raises(rows, sentence):
    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2)
    for name, count in rows.items():
        layer.parameters[f"{name}.weight"] = layer.parameters[f"{name}.weight"][:count]
    with pytest.raises(ValueError, match=sentence):
        layer(np.ones((1, 2, 24)))


def test_a_numpy_layer_with_a_part_of_its_heads_computes_its_part():
    module = Backend("numpy").module
    rng = np.random.default_rng(0)
    whole, x = module.GroupedQueryAttention(24, 6, 2, causal=True), rng.normal(size=(2, 5, 24))
    mask = rng.normal(size=(2, 6, 5, 5))
    outputs, masked, extended = [], [], []
    for rank in (0, 1):
        part = module.GroupedQueryAttention(24, 6, 2, causal=True)
        rows = {"q_proj": slice(12 * rank, 12 * rank + 12), "k_proj": slice(4 * rank, 4 * rank + 4)}
        rows["v_proj"] = rows["k_proj"]
        part.parameters |= {f"{name}.weight": whole.parameters[f"{name}.weight"][cut] for name, cut in rows.items()}
        part.parameters["o_proj.weight"] = whole.parameters["o_proj.weight"][:, rows["q_proj"]]
        outputs.append(part(x)[0])
        masked.append(part(x, mask=mask[:, 3 * rank : 3 * rank + 3])[0])
        cache = part.init_cache(2, 5)
        assert cache.keys.shape == cache.values.shape == (2, 1, 5, 4)
        first, cache = part.extend(x[:, :3], cache)
        extended.append(np.concatenate([first, part.extend(x[:, 3:], cache)[0]], axis=1))
        with pytest.raises(ValueError, match=r"mask: .* = \(2, 3, 5, 5\), got \(2, 6, 5, 5\)"):
            part(x, mask=mask)
    assert error_of(sum(outputs), whole(x)[0]) <= 1e-12
    assert error_of(sum(masked), whole(x, mask=mask)[0]) <= 1e-12
    assert error_of(sum(extended), whole(x)[0]) <= 1e-12


def test_a_numpy_layer_with_a_part_of_its_heads_refuses_the_cache_of_all():
    module = Backend("numpy").module
    whole, part = (module.GroupedQueryAttention(24, 6, 2, causal=True) for _ in range(2))
    for name, rows in (("q_proj", 12), ("k_proj", 4), ("v_proj", 4)):
        part.parameters[f"{name}.weight"] = part.parameters[f"{name}.weight"][:rows]
    with pytest.raises(ValueError, match=r"cache\.keys: expected .*K = 1"):
        part.extend(np.ones((2, 3, 24)), whole.init_cache(2, 5))


def test_of_two_threads_that_extend_a_numpy_cache_one_gets_the_error():
    import threading

    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2, causal=True)
    x = np.random.default_rng(0).normal(size=(1, 3, 24))
    for _ in range(60):
        cache, errors, start = layer.init_cache(1, 8), [], threading.Barrier(2)

        def extend(cache=cache, errors=errors, start=start):
            start.wait()
            try:
                layer.extend(x, cache)
            except ValueError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=extend) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        assert "already extended" in errors[0]
