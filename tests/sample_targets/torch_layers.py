"""Classes of PyTorch: one that is right, and one fault in each of the others."""

import torch


class Right(torch.nn.Module):
    """Grouped-query attention as its author would write it; each part can be replaced by a subclass."""

    def __init__(self, embed_dim, num_heads, num_kv_heads, causal=False):
        super().__init__()
        H = embed_dim // num_heads
        self.heads, self.groups, self.causal = num_heads, num_heads // num_kv_heads, causal
        self.q_proj = torch.nn.Linear(embed_dim, num_heads * H, bias=False)
        self.k_proj = torch.nn.Linear(embed_dim, num_kv_heads * H, bias=False)
        self.v_proj = torch.nn.Linear(embed_dim, num_kv_heads * H, bias=False)
        self.o_proj = torch.nn.Linear(num_heads * H, embed_dim, bias=False)

    def split(self, x, heads):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def shared(self, x):
        return x.repeat_interleave(self.groups, dim=1)

    def forward(self, query, key=None, value=None, mask=None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = self.split(q, self.heads), *(self.shared(self.split(x, self.heads // self.groups)) for x in (k, v))
        T, S = q.shape[2], k.shape[2]
        visible = torch.ones(1, 1, T, S, dtype=torch.bool).tril(S - T if self.causal else S)
        bias = torch.zeros((), dtype=q.dtype)
        if mask is not None:
            mask = mask if mask.ndim == 4 else mask[None, None]
            visible = visible & (mask if mask.dtype == torch.bool else mask > -torch.inf)
            bias = bias if mask.dtype == torch.bool else torch.where(visible, mask, 0).to(q.dtype)
        seen = visible.any(2, keepdim=True).expand(-1, visible.shape[1], T, S)[:, :, :1].mT
        k, v = (torch.where(seen, x, 0) for x in (k, v))
        scores = (q @ k.mT / q.shape[-1] ** 0.5 + bias).clamp(min=torch.finfo(q.dtype).min)
        weights = torch.where(visible, scores, -torch.inf).softmax(-1)
        weights = torch.where(visible.any(-1, keepdim=True), weights, 0)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Tiled(Right):
    def shared(self, x):
        return x.repeat(1, self.groups, 1, 1)


class LoudKeys(Right):
    def load_state_dict(self, weights):
        super().load_state_dict({name: 1.25 * x if name == "k_proj.weight" else x for name, x in weights.items()})


class WrongOutput(Right):
    def forward(self, *arguments):
        output, weights = super().forward(*arguments)
        return output + output.mean(), weights


class Silent(Right):
    def forward(self, *arguments):
        return super().forward(*arguments)[0]


class Tells(Right):
    """It shows its scores, which are not scaled, and is right otherwise."""

    def trace(self, query, key=None, value=None, mask=None):
        q, k = self.split(self.q_proj(query), self.heads), self.split(self.k_proj(query), self.heads // self.groups)
        return {"q_proj": q, "k_proj": k, "scores": q @ self.shared(k).mT}
