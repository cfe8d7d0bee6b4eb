"""Caches of gqa_torch among threads, in inference mode, and after an overflow."""

import threading

import pytest
import torch

from tests.layer.test_torch_module import layer_of, tokens

pytestmark = pytest.mark.no_shape_checks


class TestCachesInTorch:
    def test_one_of_two_threads_gets_the_cache(self):
        layer, x = layer_of(), tokens(1, 3, 24)
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

    @pytest.mark.parametrize("rolling", [False, True])
    def test_a_cache_made_in_inference_mode_can_be_extended_outside(self, rolling):
        layer, x = layer_of(window=3), tokens(2, 5, 24)
        with torch.inference_mode():
            _, cache = layer.extend(x, layer.init_cache(2, 9, rolling=rolling))
            forks = [cache.clone(), cache.select([1, 0]), cache.grow(12)]
        expected, _ = layer.extend(x[:, :2], cache.clone())
        for fork in forks:
            output, fork = layer.extend(x[:, :2], fork)
            assert output.shape == expected.shape
            with torch.inference_mode():
                layer.extend(x[:, :2], fork)

    @pytest.mark.parametrize("rolling", [False, True])
    def test_an_overflowed_row_stays_so_until_it_is_reset(self, rolling):
        """Compiled, where a full row cannot raise; and a rolling cache's length that was changed by hand."""
        torch._dynamo.reset()
        layer, x = layer_of(window=3), tokens(2, 5, 24)
        compiled = torch.compile(layer.extend, fullgraph=True, backend="aot_eager")
        _, cache = layer.extend(x, layer.init_cache(2, 12, rolling=rolling), lengths=torch.tensor([5, 3]))
        if rolling:
            cache.length = cache.length - torch.tensor([1, 0])
            output, _ = compiled(x[:, :1], cache)
        else:
            _, cache = compiled(tokens(2, 8, 24), cache)
            assert cache.length.tolist() == [13, 11]
            for changed in (cache.grow(20), cache.grow(20).truncate([2, 3]), cache.select([0, 1])):
                output, _ = compiled(x[:, :1], changed)
                assert output[0].isnan().all()
                assert output[1].isfinite().all()
            assert compiled(x[:, :1], cache.grow(20).reset([0]))[0].isfinite().all()
            return
        assert output[0].isnan().all()
        assert output[1].isfinite().all()
