"""`gqa vectors --onnx`: node tests that onnx's reference evaluator and ONNX Runtime pass, and a wrong node fails."""

from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from gqa import app

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    result = CliRunner().invoke(app, ["vectors", str(folder), "--onnx"])
    assert result.exit_code == 0, result.output
    return folder / "onnx", result.output


def stored_in(folder):
    for own in sorted(folder.iterdir()):
        data = own / "test_data_set_0"
        paths = sorted(data.glob("input_*.pb"))
        given = [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]
        model = onnx.load(own / "model.onnx")
        fed = dict(zip([x.name for x in model.graph.input], given, strict=True))
        yield own.name, model, fed, onnx.numpy_helper.to_array(onnx.load_tensor(data / "output_0.pb"))


def off(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max() if got.shape == expected.shape else np.inf


def test_what_is_written_and_left_out_is_counted(written):
    folder, output = written
    count = len(list(folder.iterdir()))
    assert count > 80
    assert f"{count} node tests of opset 23" in output
    assert "the operator has no sinks" in output
    for name, model, *_ in stored_in(folder):
        onnx.checker.check_model(model, full_check=True)
        assert [x.version for x in model.opset_import] == [23], name


def test_onnxs_own_evaluator_passes_them(written):
    from onnx.reference import ReferenceEvaluator

    for name, model, fed, expected in stored_in(written[0]):
        assert off(ReferenceEvaluator(model).run(None, fed)[0], expected) < 1e-4, name


def test_a_node_that_forgets_a_setting_fails(written):
    """Without is_causal, and without its scale or softcap: what is written depends on each."""
    from onnx.reference import ReferenceEvaluator

    forgotten = Counter()
    for name, model, fed, expected in stored_in(written[0]):
        for attribute in list(model.graph.node[0].attribute):
            if attribute.name == "is_causal" and (fed["Q"].shape[2] == 1 or name.endswith("b_equals_k")):
                continue  # the last query sees every key; there, padding hides the same ones
            model.graph.node[0].attribute.remove(attribute)
            assert off(ReferenceEvaluator(model).run(None, fed)[0], expected) > 1e-3, (name, attribute.name)
            model.graph.node[0].attribute.append(attribute)
            forgotten[attribute.name] += 1
    assert min(forgotten[name] for name in ("is_causal", "scale", "softcap")) >= 10


def test_onnx_runtime_passes_them(written):
    runtime = pytest.importorskip("onnxruntime")
    for name, model, fed, expected in stored_in(written[0]):
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert off(session.run(None, fed)[0], expected) < 1e-4, name
