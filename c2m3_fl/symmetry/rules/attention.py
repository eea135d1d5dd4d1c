"""Scaled dot-product attention: heads are one group, the head dimensions of q and k another, those of v a third."""

from __future__ import annotations

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.products import name_attention
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.tensors import Traced, broadcast


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Traced:
    """Softmax over keys of q k^T, times v."""
    q, k, v = call.tensor("query"), call.tensor("key"), call.tensor("value")
    symbols.unify(q.axes[-1], k.axes[-1])
    symbols.unify(k.axes[-2], v.axes[-2])
    if call.args.get("is_causal"):
        for extent in (q.axes[-2], k.axes[-2]):
            symbols.pin(extent, "the order of tokens matters to causal attention")
    keys = [Traced(k.axes[:-2]), Traced(v.axes[:-2])]
    if call.args.get("enable_gqa") and k.shape[-3] != q.shape[-3]:
        shared, _ = symbols.split_trailing(q.axes[-3], q.shape[-3] // k.shape[-3])
        keys.append(Traced((*q.axes[:-3], shared)))
        broadcast(keys)
        batch = q.axes[:-2]
    else:
        batch = broadcast([Traced(q.axes[:-2]), *keys]).axes
    if (mask := call.maybe("attn_mask")) is not None:
        broadcast([Traced((*batch, q.axes[-2], k.axes[-2])), mask])
    name_attention(call, batch, q.axes[-1], v.axes[-1])
    return Traced((*batch, q.axes[-2], v.axes[-1]))
