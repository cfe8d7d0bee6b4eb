"""Code that shows the answers of a public implementation without this project: its call, and probes shared by all.

The page prints it below a section, with what it prints; a test runs it. What it prints is written from the findings of
`detect`, so that two independent ways to a row agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conformance.dialects.detect import Finding
from conformance.dialects.snippet_calls import CALLS

PRELUDE = '''
rng = np.random.default_rng(0)


def inputs(N, K, T, S):
    """Values are rows of the identity, so that the context is the weights."""
    q, k = (rng.normal(size=(1, n, t, 16)).astype(np.float32) for n, t in ((N, T), (K, S)))
    return q, k, np.tile(np.eye(S, 16, dtype=np.float32), (1, K, 1, 1))


def seen(row):
    return np.flatnonzero(row > 1e-6).tolist()
'''


@dataclass(frozen=True)
class Shown:
    """What shows one convention. code: it prints one line. printed: by answer, what follows the convention's name."""

    code: str
    printed: Mapping[str, str]


def _keys(arguments: str, T: int, S: int, i: int) -> str:
    return _lines(
        f"q, k, v = inputs(2, 2, {T}, {S})",
        f'print("{{name}}: keys of query {i}:", seen(attend(q, k, v, {arguments})[0, 0, {i}]))',
    )


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def _keys_of(i: int, answers: Mapping[str, list[int]]) -> dict[str, str]:
    return {answer: f"keys of query {i}: {keys}" for answer, keys in answers.items()}


EMPTY = _lines(
    "q, k, v = inputs(2, 2, 2, 2)",
    "v[..., 0] = 1, 3",
    "mask = {mask}",
    'print("{{name}}: values 1 and 3, both hidden:", f"{{attend(q, k, v, mask=mask)[0, 0, 1, 0] + 0:.2f}}")',
)
AT_EMPTY = {
    answer: f"values 1 and 3, both hidden: {number}"
    for answer, number in (("0", "0.00"), ("NaN", "nan"), ("mean of all values", "2.00"), ("the first value", "1.00"))
}
PROJECTED = _lines(
    "q, k, v = inputs(2, 2, 2, 2)",
    "q[:], k[:] = 0, 0",
    "q[..., 0], k[..., 0, 0] = 4, 1",
    "w = attend(q, k, v{more})[0, 0, 1]",
    'print("{{name}}: a product of 4 counts as", f"{{np.log(w[0] / w[1]):.2f}}")',
)
SHOWN: Mapping[str, Shown] = {
    "head order": Shown(
        _lines(
            "q, k, v = inputs(4, 2, 1, 1)",
            "v[:] = np.arange(2).reshape(1, 2, 1, 1)",
            "read = attend(q, k, v)[0, :, 0, 0].round().astype(int)",
            'print("{name}: KV heads of query heads 0 to 3:", read.tolist())',
        ),
        {
            "contiguous: n // G": "KV heads of query heads 0 to 3: [0, 0, 1, 1]",
            "tiled: n % K": "KV heads of query heads 0 to 3: [0, 1, 0, 1]",
        },
    ),
    "scale": Shown(PROJECTED.format(more=""), {"H ** -0.5": "a product of 4 counts as 1.00"}),
    "given scale": Shown(PROJECTED.format(more=", scale=0.5"), {"obeyed": "a product of 4 counts as 2.00"}),
    "alignment": Shown(
        _keys("causal=True", 2, 4, 0),
        _keys_of(0, {"bottom-right": [0, 1, 2], "top-left": [0]}),
    ),
    "causal": Shown(_keys("causal=True", 4, 4, 2), _keys_of(2, {"j <= i": [0, 1, 2]})),
    "causal window of W": Shown(
        _keys("causal=True, window=2", 6, 6, 4),
        _keys_of(4, {"W keys, its own counted": [3, 4], "counts neighbours: W + 1 keys": [2, 3, 4]}),
    ),
    "window without causal": Shown(
        _keys("window=2", 8, 8, 3),
        _keys_of(
            3,
            {
                "2 W - 1 keys, a band": [2, 3, 4],
                "counts neighbours: 2 W + 1 keys": [1, 2, 3, 4, 5],
                "counts neighbours, the future open": [1, 2, 3, 4, 5, 6, 7],
            },
        ),
    ),
    "boolean mask": Shown(
        _lines("mask = np.tile(np.arange(4) < 2, (1, 1, 4, 1))", _keys("mask=mask", 4, 4, 3)),
        _keys_of(
            3,
            {
                "True may attend": [0, 1],
                "True is hidden": [2, 3],
                "added as a number": [0, 1, 2, 3],
                "added as a number, but for padding": [0, 1, 2, 3],
            },
        ),
    ),
    "floating mask": Shown(
        _lines(
            "q, k, v = inputs(2, 2, 2, 2)",
            "k[:] = 0",
            "mask = np.array([[np.log(3), 0], [np.finfo(np.float32).min] * 2], np.float32)[None, None]",
            "w = attend(q, k, v, mask=mask)[0, 0, :, :2]",
            'print("{name}: weights by (log 3, 0), by finfo.min:", w.round(2).tolist())',
        ),
        {
            "added to the scores": "weights by (log 3, 0), by finfo.min: [[0.75, 0.25], [0.5, 0.5]]",
            "finfo.min is hidden": "weights by (log 3, 0), by finfo.min: [[0.75, 0.25], [0.0, 0.0]]",
            "read as boolean": "weights by (log 3, 0), by finfo.min: [[1.0, 0.0], [0.5, 0.5]]",
        },
    ),
    "empty row, boolean": Shown(
        EMPTY.format(mask="np.tile(np.array([[{yes}], [{no}]]), (1, 1, 1, 2))"),
        AT_EMPTY,
    ),
    "empty row, -inf": Shown(
        EMPTY.format(mask="np.tile(np.array([[0], [-np.inf]], np.float32), (1, 1, 1, 2))"),
        AT_EMPTY,
    ),
    "poison": Shown(
        _lines(
            "q, k, v = inputs(2, 2, 4, 4)",
            "mask = np.tile(np.where(np.arange(4) < 3, {yes}, {no}), (1, 1, 4, 1))",
            "bad = np.where(np.arange(4) < 3, 0, np.nan).astype(np.float32)[:, None]",
            "outputs = attend(q, k + bad, v, mask=mask), attend(q, k, v + bad, mask=mask)",
            "leaks = [bool(np.isnan(output).any()) for output in outputs]",
            'print("{name}: NaN in a hidden key, value reaches the context:", leaks)',
        ),
        {
            answer: f"NaN in a hidden key, value reaches the context: {leaks}"
            for answer, leaks in (
                ("hidden NaN has no influence", [False, False]),
                ("values leak", [False, True]),
                ("keys and values leak", [True, True]),
            )
        },
    ),
    "16-bit scores": Shown(
        _lines(
            "q, k, v = inputs(2, 2, 2, 2)",
            "q[:], k[:] = 0, 0",
            "q[..., :2], k[..., 0], k[..., 1, 1] = (32, 4), 32, 0.25",
            'w = attend(q, k, v, dtype="bfloat16")[0, 0, 0, :2]',
            'print("{name}: weights by 256 and 256.25:", w.round(2).tolist())',
        ),
        {
            "kept in float32": "weights by 256 and 256.25: [0.44, 0.56]",
            "rounded to 16 bit": "weights by 256 and 256.25: [0.5, 0.5]",
        },
    ),
    "float64": Shown(
        _lines(
            "q, k, v = (x.astype(np.float64) for x in inputs(2, 2, 5, 5))",
            "w = np.exp(q @ k.swapaxes(2, 3) / 4)",
            "error = abs(attend(q, k, v) - w / w.sum(-1, keepdims=True) @ v).max()",
            'print("{name}: error below 1e-12:", bool(error < 1e-12))',
        ),
        {"computed in float64": "error below 1e-12: True", "float32 inside": "error below 1e-12: False"},
    ),
}


def snippet(name: str, found: list[Finding]) -> tuple[str, str]:
    """The code of a target and what it prints; both empty where the target has none."""
    call = CALLS.get(name)
    if call is None:
        return "", ""
    inverted = any((f.convention, f.answer) == ("boolean mask", "True is hidden") for f in found)
    words = {"yes": str(not inverted), "no": str(inverted)}
    code, printed = [call.code.strip(), PRELUDE.strip()], []
    for finding in found:
        shown = SHOWN.get(finding.convention)
        if shown is None or finding.convention in call.without or finding.answer not in shown.printed:
            continue
        part = shown.code
        for word, by in {"name": finding.convention, **words}.items():
            part = part.replace(f"{{{word}}}", by)
        code.append(part)
        printed.append(f"{finding.convention}: {shown.printed[finding.answer]}")
    if call.more:
        code.append(call.more.strip())
        printed.append(call.printed)
    head, prelude, *parts = code
    return "\n\n\n".join((head, prelude, "\n\n".join(parts))), "\n".join(printed)
