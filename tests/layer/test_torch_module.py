"""gqa_torch's layer under what users do to modules: initialise, prune, wrap, quantize, shard, compile, copy, hook."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from conformance.cases.compare import error_of
from gqa_spec import RopeConfig
from gqa_torch import GroupedQueryAttention, attention_stages, grouped_query_attention, merge

pytestmark = pytest.mark.no_shape_checks
SETTINGS = {"qkv_bias": True, "out_bias": True, "sinks": True, "qk_norm": "rms_plus_one", "rope": RopeConfig()}


def layer_of(**settings):
    torch.manual_seed(0)
    return GroupedQueryAttention(24, 6, 2, **{"dtype": torch.float64, "causal": True, **settings})


def tokens(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_is_initial(layer):
    """SPEC 17, by the bounds and the identities."""
    for name, parameter in layer.named_parameters():
        if name.endswith("_proj.weight"):
            assert 0.5 * parameter.shape[1] ** -0.5 < parameter.abs().max() <= parameter.shape[1] ** -0.5
        else:
            assert (parameter == 0).all(), name  # biases, sinks, and the identity of rms_plus_one


class TestInitialisation:
    def test_after_to_empty(self):
        layer = layer_of(**SETTINGS, device="meta").to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 2e38)
        layer.reset_parameters()
        assert_is_initial(layer)

    def test_module_by_module(self):
        """As deferred initialisation does it: every module that has parameters of its own can draw them."""
        layer = layer_of(**SETTINGS, device="meta").to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 2e38)
        for module in layer.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.reset_parameters()
        assert all(parameter.abs().max() <= 1 for parameter in layer.parameters())

    def test_parameters_of_a_subclass_stay(self):
        class Scaled(GroupedQueryAttention):
            def __init__(self, *arguments, **keywords):
                super().__init__(*arguments, **keywords)
                self.gain = nn.Parameter(torch.full((3,), 7.0))

        layer = Scaled(24, 6, 2)
        layer.reset_parameters()
        assert (layer.gain == 7).all()
        assert_is_initial_projections(layer)

    def test_weight_norm(self):
        layer = layer_of()
        parametrizations.weight_norm(layer.q_proj)
        layer.reset_parameters()
        bound = 24**-0.5
        assert 0.5 * bound < layer.q_proj.weight.abs().max() <= bound * (1 + 1e-12)
        assert layer(tokens(2, 5, 24))[0].isfinite().all()

    def test_a_pruned_projection_keeps_its_mask(self):
        layer = layer_of()
        prune.l1_unstructured(layer.q_proj, "weight", amount=0.5)
        before = layer.q_proj.weight.clone()
        layer.reset_parameters()
        layer(tokens(2, 5, 24))
        assert not torch.equal(layer.q_proj.weight, before)
        assert ((layer.q_proj.weight == 0) == (layer.q_proj.weight_mask == 0)).all()


def assert_is_initial_projections(layer):
    for name in "qkvo":
        weight = getattr(layer, f"{name}_proj").weight
        assert 0.5 * weight.shape[1] ** -0.5 < weight.abs().max() <= weight.shape[1] ** -0.5


class LowRank(nn.Module):
    """An adapter as LoRA's: the projection, plus a product of two thin matrices, in another dtype at first."""

    def __init__(self, base):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.ones(base.out_features, 2, dtype=base.weight.dtype))
        self.base = base

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class TestReplacedProjections:
    def test_an_adapter(self):
        layer, x = layer_of(rope=RopeConfig()), tokens(2, 5, 24)
        expected = layer(x)[0]
        layer.q_proj, layer.v_proj = LowRank(layer.q_proj), LowRank(layer.v_proj)
        assert torch.equal(layer(x)[0], expected)
        output, cache = layer.extend(x, layer.init_cache(2, 8))
        assert cache.keys.dtype == torch.float64
        assert error_of(output.numpy(), expected.detach().numpy()) <= 1e-12

    def test_all_projections_replaced(self):
        layer, x = layer_of(), tokens(2, 5, 24)
        expected = layer(x)[0]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer, name, LowRank(getattr(layer, name)))
        assert torch.equal(layer(x)[0], expected)

    @pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
    @pytest.mark.skipif(
        not torch.backends.quantized.supported_engines, reason="this PyTorch has no engine for quantized layers"
    )
    def test_int8_projections(self):
        layer, x = layer_of(dtype=torch.float32), tokens(2, 5, 24, dtype=torch.float32)
        expected = layer(x)[0].detach()
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.qint8)
        assert type(quantized.q_proj) is not nn.Linear
        assert error_of(quantized(x)[0].detach().numpy(), expected.numpy()) < 0.1
        output, _ = quantized.extend(x, quantized.init_cache(2, 8))
        assert error_of(output.numpy(), expected.numpy()) < 0.1

    def test_weights_of_an_adapter_are_not_passed_off_as_the_layers(self):
        layer = layer_of()
        weights = layer.export_weights()
        layer.q_proj = LowRank(layer.q_proj)
        for act in (layer.export_weights, lambda: layer.load_weights(weights)):
            with pytest.raises(TypeError, match=r"q_proj\.weight: expected a parameter, .* got none in LowRank: merge"):
                act()

    def test_weight_norm_is_exported_and_loaded(self):
        layer, x = layer_of(), tokens(2, 5, 24)
        weights, expected = layer.export_weights(), layer(x)[0]
        other = layer_of()
        parametrizations.weight_norm(other.k_proj)
        other.reset_parameters()
        other.load_weights(weights)
        assert error_of(other(x)[0].detach().numpy(), expected.detach().numpy()) <= 1e-12
        np.testing.assert_allclose(other.export_weights()["k_proj.weight"], weights["k_proj.weight"], rtol=1e-12)

    def test_a_pruned_layer_is_exported_as_it_computes(self):
        layer, x = layer_of(), tokens(2, 5, 24)
        prune.l1_unstructured(layer.v_proj, "weight", amount=0.5)
        expected = layer(x)[0]
        other = layer_of().load_weights(layer.export_weights())
        assert torch.equal(other(x)[0], expected)
        layer.load_weights(other.export_weights())
        assert torch.equal(layer(x)[0], expected)


class TestLocalHeads:
    def test_a_part_of_the_heads(self):
        """Two parts of a layer, each with its rows of the projections: their outputs add up to the whole layer's."""
        layer, x = layer_of(rope=RopeConfig()), tokens(2, 5, 24)
        expected, total, extended = layer(x)[0], 0.0, 0.0
        for part in range(2):
            local = copy.deepcopy(layer)
            for name, rows in (("q_proj", 12), ("k_proj", 4), ("v_proj", 4)):
                weight = getattr(layer, name).weight[part * rows : (part + 1) * rows]
                getattr(local, name).weight = nn.Parameter(weight.detach().clone())
            local.o_proj.weight = nn.Parameter(layer.o_proj.weight[:, part * 12 : (part + 1) * 12].detach().clone())
            output, weights = local(x)
            assert weights.shape == (2, 3, 5, 5)
            mask = torch.zeros(2, 3, 5, 5, dtype=torch.float64)  # one for each head that is here
            assert torch.equal(local(x, mask=mask)[0], output)
            with pytest.raises(ValueError, match=r"mask: .* = \(2, 3, 5, 5\), got \(2, 6, 5, 5\)"):
                local(x, mask=torch.zeros(2, 6, 5, 5, dtype=torch.float64))
            total = total + output
            extended = extended + local.extend(x, local.init_cache(2, 5))[0]
        assert error_of(total.detach().numpy(), expected.detach().numpy()) <= 1e-12
        assert error_of(extended.numpy(), expected.detach().numpy()) <= 1e-12

    @pytest.mark.parametrize(
        ("name", "rows", "sentence"),
        [
            ("q_proj", 12, "q_proj: expected G = 3 query heads for each of 2 KV heads, got 3"),
            ("q_proj", 22, "q_proj: expected a width that H = 4 divides, got 22"),
            ("k_proj", 4, "v_proj: expected as many heads as k_proj, 1 of Hv = 4, got 2"),
            ("v_proj", 4, "v_proj: expected as many heads as k_proj, 2 of Hv = 4, got 1"),
        ],
    )
    def test_widths_that_disagree(self, name, rows, sentence):
        layer = layer_of()
        getattr(layer, name).weight = nn.Parameter(getattr(layer, name).weight[:rows].detach().clone())
        with pytest.raises(ValueError, match=f"^{sentence}"):
            layer(tokens(2, 5, 24))


class TestDropout:
    def test_it_is_a_module_that_can_be_set(self):
        layer, x = layer_of(dropout=0.5), tokens(2, 5, 24)
        assert isinstance(layer.dropout, nn.Dropout)
        layer.dropout.p = 0.0
        assert torch.equal(layer(x)[0], layer.eval()(x)[0])
        layer = layer_of().train()
        layer.dropout.p = 0.9
        assert not torch.equal(layer(x)[0], layer.eval()(x)[0])

    def test_decoding_drops_nothing(self):
        layer, x = layer_of(dropout=0.5), tokens(2, 5, 24)
        trained = layer.extend(x, layer.init_cache(2, 5))[0]
        assert torch.equal(trained, layer.eval().extend(x, layer.init_cache(2, 5))[0])


class TestHooks:
    def test_they_fire_while_decoding(self):
        layer, x, seen = layer_of(), tokens(2, 5, 24), []
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output[0].shape))
        layer.extend(x, layer.init_cache(2, 5))
        assert seen == [(2, 5, 24)]

    def test_they_may_change_the_output(self):
        layer, x = layer_of(), tokens(2, 5, 24)
        expected = layer.extend(x, layer.init_cache(2, 5))[0] + 1
        layer.register_forward_hook(lambda module, arguments, output: (output[0] + 1, output[1]))
        assert torch.equal(layer.extend(x, layer.init_cache(2, 5))[0], expected)


class TestCompiled:
    @pytest.mark.parametrize("settings", [{}, {"window": 5}, {"causal": False}], ids=str)
    def test_lengths_without_a_graph_break(self, settings):
        torch._dynamo.reset()
        layer = layer_of(**settings).eval()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for length in (8, 9, 20, 33):
            x = tokens(2, length, 24)
            got = compiled(x, need_weights=False)[0].detach()
            assert error_of(got.numpy(), layer(x)[0].detach().numpy()) <= 1e-12

    def test_the_kernel_alone(self):
        torch._dynamo.reset()
        compiled = torch.compile(grouped_query_attention, fullgraph=True, dynamic=True, backend="aot_eager")
        for length in (8, 9, 20, 33):
            q, k = tokens(2, 6, length, 4), tokens(2, 2, length, 4)
            got = compiled(q, k, k, causal=True, need_weights=False)[0]
            assert error_of(got.numpy(), grouped_query_attention(q, k, k, causal=True)[0].numpy()) <= 1e-12


class TestWithoutValues:
    """Checks of values are left out where no value can be read."""

    def test_meta_device(self):
        layer = layer_of(device="meta")
        output, cache = layer.extend(torch.empty(2, 5, 24, dtype=torch.float64, device="meta"), layer.init_cache(2, 8))
        assert output.is_meta
        assert cache.keys.is_meta
        assert cache.length.tolist() == [5, 5]

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            layer = GroupedQueryAttention(24, 6, 2, causal=True, window=9)
            x = torch.empty(2, 20, 24)
            assert layer(x, need_weights=False)[0].shape == (2, 20, 24)
            lengths = torch.tensor([3, 20])
            for rolling in (False, True):
                output, cache = layer.extend(x, layer.init_cache(2, 32, rolling=rolling), lengths=lengths)
                assert output.shape == (2, 20, 24)
                assert layer.extend(x[:, :1], cache)[0].shape == (2, 1, 24)

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_vmap_over_a_mask(self):
        layer, x = layer_of(causal=False), tokens(1, 5, 24)
        masks = torch.ones(3, 5, 5, dtype=torch.bool).tril() & (torch.arange(5) != torch.arange(3)[:, None, None])
        got = torch.func.vmap(lambda mask: layer(x, mask=mask, need_weights=False)[0])(masks)
        for g, mask in zip(got, masks, strict=True):
            assert error_of(g.detach().numpy(), layer(x, mask=mask)[0].detach().numpy()) <= 1e-12


def test_repr_shows_the_settings_that_matter():
    shown = repr(layer_of(rope=RopeConfig(theta=5e5), dropout=0.1, window=7))
    for part in ("embed_dim=24, num_heads=6, num_kv_heads=2", "causal=True", "window=7", "theta=500000.0", "p=0.1"):
        assert part in shown
    assert "softcap" not in shown


class TestMerge:
    SHAPES = (2, 6, 5, 4), (2, 2, 9, 4)

    def parts(self, **settings):
        q, k, v = tokens(*self.SHAPES[0]), tokens(*self.SHAPES[1], seed=2), tokens(*self.SHAPES[1], seed=3)
        whole = attention_stages(q, k, v, **settings)
        return q, k, v, whole

    def test_parts_of_the_keys_give_the_whole(self):
        sinks = tokens(6, seed=4)
        mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(5)) < 0.5
        mask[2] = False  # a query that sees no key
        mask[1, :4] = False  # and one that sees none in the first part
        q, k, v, whole = self.parts(mask=mask, sinks=sinks, softcap=2.0)
        found = []
        for keys, sink in ((slice(0, 4), None), (slice(4, 7), sinks), (slice(7, 9), None)):
            part = attention_stages(q, k[:, :, keys], v[:, :, keys], mask[:, keys], sinks=sink, softcap=2.0)
            found.append((part["context"], part["logsumexp"]))
        context, logsumexp = merge(*zip(*found, strict=True))
        # the query that sees keys in no part, or in those without the sink alone, has no sink
        sees_in_second = mask[:, 4:7].any(dim=1)
        kept = sees_in_second | ~mask.any(dim=1)
        torch.testing.assert_close(context[:, :, kept], whole["context"][:, :, kept], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logsumexp[:, :, kept], whole["logsumexp"][:, :, kept], rtol=1e-12, atol=1e-12)

    def test_the_definition_of_logsumexp(self):
        sinks = tokens(6, seed=4)
        *_, whole = self.parts(causal=True, offset=-2, sinks=sinks)
        masked = torch.cat([whole["masked"], sinks[None, :, None, None].expand(2, 6, 5, 1)], dim=-1)
        expected = masked.exp().sum(dim=-1).log()
        expected[:, :, :2] = -torch.inf  # queries before the first key
        torch.testing.assert_close(whole["logsumexp"], expected, rtol=1e-12, atol=1e-12)

    def test_gradients(self):
        q, k, v, _ = self.parts()
        leaves = [x.requires_grad_() for x in (q, k, v)]

        def merged(q, k, v):
            parts = [attention_stages(q, k[:, :, s], v[:, :, s]) for s in (slice(0, 4), slice(4, 9))]
            return merge([p["context"] for p in parts], [p["logsumexp"] for p in parts])[0]

        got = torch.autograd.grad(merged(*leaves).square().sum(), leaves)
        expected = torch.autograd.grad(grouped_query_attention(*leaves)[0].square().sum(), leaves)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12)

    def test_an_empty_row_sends_no_nan(self):
        contexts = [tokens(1, 1, 2, 3).requires_grad_(), tokens(1, 1, 2, 3).requires_grad_()]
        logsumexps = [torch.tensor([[[-torch.inf, 0.5]]]).double().requires_grad_() for _ in range(2)]
        context, logsumexp = merge(contexts, logsumexps)
        assert (context[0, 0, 0] == 0).all()
        assert logsumexp[0, 0, 0] == -torch.inf
        context.sum().backward()
        for x in (*contexts, *logsumexps):
            assert x.grad.isfinite().all()

    def test_16_bit(self):
        q, k, v = (x.bfloat16() for x in self.parts()[:3])
        parts = [attention_stages(q, k[:, :, s], v[:, :, s]) for s in (slice(0, 4), slice(4, 9))]
        context, logsumexp = merge([p["context"] for p in parts], [p["logsumexp"] for p in parts])
        assert (context.dtype, logsumexp.dtype) == (torch.bfloat16, torch.float32)
        expected = grouped_query_attention(q, k, v)[0]
        assert error_of(context.float().numpy(), expected.float().numpy()) < 0.02

    def test_bad_input(self):
        with pytest.raises(
            ValueError, match="contexts, logsumexps: expected as many of both, at least one, got 0 and 0"
        ):
            merge([], [])
        with pytest.raises(ValueError, match=r"logsumexps: expected \(B, N, T\) with B = 1, N = 2, T = 3"):
            merge([tokens(1, 2, 3, 4)], [tokens(1, 2, 5)])
