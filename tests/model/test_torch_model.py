"""gqa_torch's Transformer: initialisation, masks, packed documents, operations on caches, generation, hooks."""

import numpy as np
import pytest
import torch
from torch import nn

from conformance.cases.compare import error_of
from gqa_spec import DynamicScaling, ModelConfig, RopeConfig
from gqa_torch import GroupedQueryAttention, ModelCache, Transformer, masks
from gqa_torch.block import Block

pytestmark = pytest.mark.no_shape_checks


def model_of(**settings):
    torch.manual_seed(0)
    config = ModelConfig.decoder(
        vocab_size=37, hidden_size=24, num_heads=6, num_kv_heads=2, num_layers=3, feed_forward_size=31, **settings
    )
    return Transformer(config, dtype=torch.float64).eval()


def tokens(B, T, seed=1):
    return torch.randint(0, 37, (B, T), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    return error_of(a.detach().numpy(), b.detach().numpy()) <= 1e-12


class TestInitialisation:
    def test_to_empty_and_reset_parameters(self):
        model = Transformer(model_of().config, device="meta").to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.constant_(parameter, 2e38)
        model.reset_parameters()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                assert (parameter == 1).all()
            else:
                bound = parameter.shape[1] ** -0.5
                assert 0.5 * bound < parameter.abs().max() <= bound, name

    @pytest.mark.parametrize("norm", ["rms", "rms_plus_one"])
    def test_norms_draw_their_own(self, norm):
        model = Transformer(model_of().config.replace(norm=norm), device="meta").to_empty(device="cpu")
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.reset_parameters()
        assert all(parameter.isfinite().all() and parameter.abs().max() < 9 for parameter in model.parameters())
        assert (model.norm.weight == (0 if norm == "rms_plus_one" else 1)).all()


class TestMasks:
    def test_packed_documents(self):
        """Two documents in a row give what each gives alone."""
        model, first, second = model_of(qk_norm="rms"), tokens(1, 5), tokens(1, 7, seed=2)
        segments = torch.tensor([[0] * 5 + [1] * 7])
        packed = model(torch.cat([first, second], dim=1), segments=segments)
        assert close(packed[:, :5], model(first))
        assert close(packed[:, 5:], model(second))

    def test_packed_documents_with_positions(self):
        """Positions that start again give the same, since RoPE is relative; and with frequencies of a length, more."""
        scaling = DynamicScaling(factor=4.0, original_max_position_embeddings=6)
        for rope in (True, RopeConfig(rotary_dim=4, scaling=scaling)):
            model, first, second = model_of(rope=rope), tokens(1, 5), tokens(1, 7, seed=2)
            segments, positions = torch.tensor([[0] * 5 + [1] * 7]), torch.tensor([*range(5), *range(7)])
            both = torch.cat([first, second], dim=1)
            packed = model(both, segments=segments, positions=positions, rope_length=7)
            assert close(packed[:, 5:], model(second, rope_length=7))

    def test_left_padding(self):
        model, prompt = model_of(), tokens(2, 6)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), prompt], dim=1)
        real = torch.arange(9) >= 3
        positions = (torch.arange(9) - 3).clamp(min=0)
        got = model(padded, mask=real.expand(2, 9)[:, None, None], positions=positions)
        assert close(got[:, 3:], model(prompt))

    def test_a_mask_in_all_layers(self):
        model, prompt = model_of(), tokens(2, 6)
        assert close(model(prompt, mask=masks.window(6, 6, 3)), model_of(window=3)(prompt))

    def test_mask_segments_and_lengths_combine(self):
        model, prompt, lengths = model_of(), tokens(2, 6), torch.tensor([6, 4])
        segments = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
        bias = -torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        mask = masks.combine(bias, masks.segments(segments, segments), masks.padding(lengths, 6))
        got = model(prompt, mask=bias, segments=segments, lengths=lengths)
        assert close(got[0], model(prompt, mask=mask)[0])
        assert close(got[1, :4], model(prompt, mask=mask)[1, :4])

    @pytest.mark.parametrize(
        ("settings", "kind", "sentence"),
        [
            ({"mask": torch.ones(2, 6, dtype=torch.bool)}, ValueError, r"mask: .* write mask\[:, None, None\]"),
            ({"segments": torch.ones(2, 6)}, TypeError, "segments: expected an integer dtype, got float32"),
            ({"segments": tokens(2, 5)}, ValueError, r"segments: expected \(B, T\) with B = 2, T = 6, got \(2, 5\)"),
            ({"positions": torch.arange(5)}, ValueError, r"positions: expected \(T,\) = \(6,\)"),
        ],
    )
    def test_bad_input(self, settings, kind, sentence):
        with pytest.raises(kind, match=sentence):
            model_of()(tokens(2, 6), **settings)

    def test_positions_need_rope(self):
        with pytest.raises(ValueError, match="positions: expected None for a model without rope"):
            model_of(rope=False)(tokens(2, 6), positions=torch.arange(6))


class TestCacheOperations:
    """Each against decoding anew. SPEC 13."""

    def started(self, B=3, T=5, length=12, **settings):
        model, prompt = model_of(**settings), tokens(B, T)
        _, cache = model.extend(prompt, model.init_cache(B, length))
        return model, prompt, cache

    def after(self, model, cache, new):
        return model.extend(new, cache)[0]

    def test_they_give_a_models_cache(self):
        model, _, cache = self.started()
        assert isinstance(cache, tuple)
        for made in (cache, cache.clone(), cache.select([0]), cache.repeat(2), cache.grow(20), cache.truncate(2)):
            assert isinstance(made, ModelCache)
            assert len(made) == model.config.num_layers

    def test_truncate(self):
        model, prompt, cache = self.started()
        new = tokens(3, 2, seed=9)
        lengths = torch.tensor([2, 5, 0])
        cut = cache.clone().truncate(lengths)
        got = self.after(model, cut, new)
        for row, length in enumerate(lengths.tolist()):
            alone = torch.cat([prompt[row : row + 1, :length], new[row : row + 1]], dim=1)
            assert close(got[row : row + 1], model(alone, rope_length=12)[:, length:])
        for layer in cache.truncate(3):
            assert layer.length.tolist() == [3, 3, 3]
            assert (layer.keys[:, :, 3:] == 0).all()
            assert layer.keys[:, :, :3].any()

    def test_select(self):
        model, prompt, cache = self.started()
        new = tokens(4, 2, seed=9)
        got = self.after(model, cache.select(torch.tensor([2, 0, 0, 1])), new)
        assert close(got, model(torch.cat([prompt[[2, 0, 0, 1]], new], dim=1), rope_length=12)[:, 5:])
        self.after(model, cache, new[:3])  # select has copied

    def test_repeat(self):
        model, prompt, cache = self.started(B=2)
        new = tokens(6, 2, seed=9)
        got = self.after(model, cache.repeat(3), new)
        assert close(got, model(torch.cat([prompt.repeat_interleave(3, 0), new], dim=1), rope_length=12)[:, 5:])

    @pytest.mark.parametrize("window", [None, 4])
    def test_reset(self, window):
        model, prompt, cache = self.started(window=window)
        new = tokens(3, 2, seed=9)
        cache = cache.reset([0, 2])
        assert cache[0].length.tolist() == [0, 5, 0]
        assert all((layer.keys[[0, 2]] == 0).all() for layer in cache)
        got = self.after(model, cache, new)
        assert close(got[[0, 2]], model(new[[0, 2]], rope_length=12))
        assert close(got[1:2], model(torch.cat([prompt[1:2], new[1:2]], dim=1), rope_length=12)[:, 5:])

    @pytest.mark.parametrize("window", [None, 4])
    def test_grow(self, window):
        model, prompt, cache = self.started(length=6, window=window)
        new = tokens(3, 7, seed=9)
        got = self.after(model, cache.grow(12), new)
        assert close(got, model(torch.cat([prompt, new], dim=1), rope_length=6)[:, 5:])

    def test_grow_keeps_the_frequencies(self):
        scaling = DynamicScaling(factor=4.0, original_max_position_embeddings=6)
        model, prompt, cache = self.started(length=6, rope=RopeConfig(rotary_dim=4, scaling=scaling))
        new = tokens(3, 7, seed=9)
        got = self.after(model, cache.grow(12), new)
        assert close(got, model(torch.cat([prompt, new], dim=1), rope_length=6)[:, 5:])

    @pytest.mark.parametrize(
        ("act", "kind", "sentence"),
        [
            (lambda c: c.truncate(6), ValueError, "lengths: expected 0 <= length <= 5, .* got 6 in row 0"),
            (lambda c: c.truncate([1, 2]), ValueError, r"lengths: expected \(B,\) with B = 3"),
            (lambda c: c.truncate(torch.ones(3)), TypeError, "lengths: expected an integer dtype, got float32"),
            (lambda c: c.select([0, 3]), ValueError, "rows: expected 0 <= row < B = 3, got 3"),
            (lambda c: c.select(torch.tensor([-1])), ValueError, "rows: expected row >= 0, got -1"),
            (lambda c: c.reset([3]), ValueError, "rows: expected 0 <= row < B = 3, got 3"),
            (lambda c: c.repeat(0), ValueError, "n: expected n >= 1, got 0"),
            (lambda c: c.grow(11), ValueError, "max_length: expected at least capacity = 12, got 11"),
        ],
    )
    def test_bad_input_leaves_the_cache_usable(self, act, kind, sentence):
        model, _, cache = self.started()
        with pytest.raises(kind, match=sentence):
            act(cache)
        self.after(model, cache, tokens(3, 1))

    def test_a_rolling_cache_cannot_be_truncated(self):
        model, _, cache = self.started(window=4)
        with pytest.raises(ValueError, match="truncate: expected a cache with rolling=False"):
            cache.truncate(3)
        self.after(model, cache, tokens(3, 1))

    @pytest.mark.parametrize("name", ["clone", "truncate", "select", "repeat", "reset", "grow"])
    def test_a_consumed_cache_raises(self, name):
        model, _, cache = self.started()
        self.after(model, cache, tokens(3, 1))
        arguments = {"clone": (), "truncate": (3,), "select": ([0],), "repeat": (2,), "reset": ([0],), "grow": (20,)}
        with pytest.raises(ValueError, match="already extended"):
            getattr(cache, name)(*arguments[name])


class TestGenerate:
    def test_arrays_and_tensors(self):
        model, prompts = model_of(), tokens(2, 5)
        expected = model.generate(prompts.tolist(), 4)
        for given in (prompts, prompts.numpy(), [*prompts], [row.numpy() for row in prompts]):
            assert model.generate(given, 4) == expected

    def test_a_seed(self):
        model, prompts = model_of(), tokens(2, 5)
        once, again, other = (model.generate(prompts, 6, temperature=2.0, seed=seed) for seed in (7, 7, 8))
        assert once == again != other
        uniforms = np.random.default_rng(7).random((2, 6))
        assert model.generate(prompts, 6, temperature=2.0, uniforms=uniforms) == once
        with pytest.raises(ValueError, match="seed: expected None where uniforms are given"):
            model.generate(prompts, 6, seed=7, uniforms=uniforms)

    @pytest.mark.parametrize("window", [None, 4])
    def test_several_turns(self, window):
        """Each turn continues what the cache holds, as if all had been one prompt."""
        model, first, second = model_of(window=window), tokens(2, 5), tokens(2, 3, seed=5)
        cache = model.init_cache(2, 32)
        new, cache = model.generate(first, 4, cache=cache)
        assert new == model.generate(first, 4)
        assert cache[0].length.tolist() == [9, 9]
        more, cache = model.generate(second, 4, cache=cache)
        assert more == model.generate(torch.cat([first, torch.tensor(new), second], dim=1), 4)

    def test_rows_that_end_early_hold_nothing_more(self):
        model, first = model_of(), tokens(2, 5)
        free = model.generate(first, 6)
        stop = free[0][1]
        new, cache = model.generate(first, 6, stop_tokens=[stop], cache=model.init_cache(2, 32))
        assert len(new[0]) == free[0].index(stop) + 1
        assert cache[0].length.tolist() == [5 + len(row) for row in new]
        second = tokens(2, 3, seed=5)
        more, _ = model.generate(second, 3, cache=cache)
        for row in range(2):
            assert more[row] == model.generate([[*first[row].tolist(), *new[row], *second[row].tolist()]], 3)[0]

    def test_a_shared_prefix(self):
        model, prefix, prompts = model_of(), tokens(1, 6), tokens(3, 2, seed=4)
        _, cache = model.extend(prefix, model.init_cache(1, 16))
        new, _ = model.generate(prompts, 4, cache=cache.repeat(3))
        assert new == model.generate(torch.cat([prefix.expand(3, 6), prompts], dim=1), 4)

    def test_a_cache_from_generate_can_be_extended(self):
        model = model_of()
        _, cache = model.generate(tokens(2, 5), 4, cache=model.init_cache(2, 32))
        model.extend(tokens(2, 1), cache)

    def test_too_few_slots_are_known_before_the_first_step(self):
        model, cache = model_of(), model_of().init_cache(2, 8)
        with pytest.raises(
            ValueError, match="cache: expected length \\+ chunk <= capacity = 8, got length 0 \\+ chunk 9"
        ):
            model.generate(tokens(2, 5), 4, cache=cache)
        model.extend(tokens(2, 1), cache)

    def test_rows_must_be_those_of_the_cache(self):
        model = model_of()
        with pytest.raises(ValueError, match="prompts: expected one for each of the cache's B = 3 rows, got 2"):
            model.generate(tokens(2, 5), 4, cache=model.init_cache(3, 32))

    def test_dropout_is_off(self):
        model, prompts = model_of(dropout=0.5), tokens(2, 5)
        assert model.train().generate(prompts, 6) == model.eval().generate(prompts, 6)
        logits = [model.train(mode).extend(prompts, model.init_cache(2, 5))[0] for mode in (True, False)]
        assert torch.equal(*logits)


def test_dropout_of_a_block_can_be_set():
    model, prompts = model_of(), tokens(2, 5)
    model.blocks[1].dropout.p = 0.9
    assert not torch.equal(model.train()(prompts), model.eval()(prompts))


class TestHooks:
    @pytest.mark.parametrize("kind", [Block, GroupedQueryAttention])
    def test_they_fire_in_extend_and_generate(self, kind):
        model, calls = model_of(), []
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(lambda *_: calls.append(1))
        model.extend(tokens(2, 5), model.init_cache(2, 5))
        assert len(calls) == 3
        model.generate(tokens(2, 5), 4)
        assert len(calls) == 3 + 3 * 4

    def test_steering(self):
        """A hook that adds a vector to a block's output acts in a whole pass and while decoding alike."""
        model, prompt = model_of(), tokens(2, 5)
        before = model(prompt)
        model.blocks[1].register_forward_hook(lambda module, arguments, output: output + 1)
        whole, (decoded, _) = model(prompt, rope_length=5), model.extend(prompt, model.init_cache(2, 5))
        assert close(decoded, whole)
        assert error_of(whole.detach().numpy(), before.detach().numpy()) > 0.01


class TestWithoutValues:
    def test_meta_device(self):
        model = Transformer(model_of().config, device="meta")
        prompt = tokens(2, 5).to("meta")
        assert model(prompt).is_meta
        assert model.extend(prompt, model.init_cache(2, 8))[0].is_meta

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            model = Transformer(model_of(window=4).config)
            prompt, lengths = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 3])
            assert model(prompt, lengths=lengths).shape == (2, 5, 37)
            logits, cache = model.extend(prompt, model.init_cache(2, 8), lengths=lengths)
            assert logits.shape == (2, 5, 37)
            assert model.extend(prompt[:, :1], cache, last=True)[0].shape == (2, 37)

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_vmap(self):
        model, prompts = model_of(), torch.stack([tokens(2, 5), tokens(2, 5, seed=2)])
        got = torch.func.vmap(model)(prompts)
        for g, prompt in zip(got, prompts, strict=True):
            assert close(g, model(prompt))

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_per_sample_gradients(self):
        model, prompts = model_of(), tokens(3, 5)
        parameters = dict(model.named_parameters())

        def loss(parameters, prompt):
            return torch.func.functional_call(model, parameters, (prompt[None],)).logsumexp(-1).sum()

        stacked = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, prompts)
        for row in range(3):
            alone = torch.func.grad(loss)(parameters, prompts[row])
            for name, gradient in alone.items():
                torch.testing.assert_close(stacked[name][row], gradient, rtol=1e-9, atol=1e-10)
