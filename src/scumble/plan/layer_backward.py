"""The backward pass of one decoder layer in our engine as events on a tape: what `LayerEvents` kept is let go step by step.

The gradient of the residual stream is there all the time; what a branch gives is added to it in place. Autograd visits
what was computed last first: the MLP, then attention; of q, k and v, and of gate and up, the last one. Knows what a layer
kept, and sizes.
"""

from __future__ import annotations

from scumble.plan.layer_events import QKV, WIDE, LayerEvents
from scumble.plan.tape import Held, Rows


class LayerBackward:
    """The backward pass of a layer whose forward pass is on the tape.

    Args:
        layer: what it kept.
    """

    def __init__(self, layer: LayerEvents) -> None:
        self.layer, self.tape, self.shape, self.setup = layer, layer.tape, layer.shape, layer.setup
        self.rows, self.few, self.ranks = layer.rows, layer.few, layer.ranks

    def run(self) -> None:
        """From the gradient of the layer's output, which becomes that of its input in place."""
        with self.tape.at(f"backward pass of {self.layer.title}, MLP"):
            self._mlp_backward()
        with self.tape.at(f"backward pass of {self.layer.title}, attention"):
            self._attention_backward()
        self.tape.free(*self.layer.kept.values())
        self.layer.kept.clear()

    def _mlp_backward(self) -> None:
        tape, rows, few, shape = self.tape, self.rows, self.few, self.shape
        h, inner = shape.hidden, shape.intermediate
        branch = None
        if shape.norms_per_layer == 4:
            branch = self._norm_backward("mlp after")
            self.layer.drop("mlp output")
        picked = None if self.layer.needed is None else few.take(h)
        if "gate_up" not in self.layer.kept:
            # nothing below this matrix is trained
            self._adapter_backward(few, h, inner)
            tape.free(picked, branch)
            return
        dproduct = few.take(inner)
        self._weight_backward("mlp.down_proj", few, inner, h)
        if "mlp.down_proj" in self.ranks:
            if self.layer.gate_kept and not self.layer.all_weights:
                few.pulse(inner)  # the product, made again
            self._adapter_backward(few, h, inner)
        tape.free(picked, branch)
        self.layer.drop("product", "mlp.down_proj h", "mlp.down_proj input")
        if shape.gated:
            part = few.take(inner)  # gradient times up
            dgate = few.take(inner)
            if self.layer.gate_kept:
                tape.free(part)
                dup = few.take(inner)
                tape.free(dproduct)
            else:
                tape.free(dproduct)
                self.layer.drop("acted")
                silu = few.take(inner)
                self.layer.drop("gate_up")
                both = few.take(2 * inner)  # the two halves' gradients, each written into zeros
                few.pulse(2 * inner)
                tape.free(dgate, part, silu)
                dgate = dup = both
        else:
            dgate = dup = few.take(inner)
            tape.free(dproduct)
        self.layer.drop("gate_up", "acted")
        dn = self._read_backward(few, [("mlp.up_proj", dup, inner), ("mlp.gate_proj", dgate, inner)], h)
        if self.layer.needed is not None:
            whole = rows.take(h)
            tape.free(dn)
            dn = whole
        self.layer.drop("n2 rows", "n2")
        after = self._norm_backward("norm2")
        tape.free(dn, after)  # added to the residual stream's gradient in place
        self.layer.drop("x2")

    def _attention_backward(self) -> None:
        tape, rows, shape = self.tape, self.rows, self.shape
        h = shape.hidden
        if not self.layer.grads_after_attention:
            return
        branch = None
        if shape.norms_per_layer == 4:
            branch = self._norm_backward("attention after")
            self.layer.drop("attention output")
        picked = None if self.layer.needed is None else self.few.take(h)
        d_out = self.few.take(self.layer.q_width)
        self._weight_backward("self_attn.o_proj", self.few, self.layer.q_width, h)
        if "self_attn.o_proj" in self.ranks:
            self._adapter_backward(self.few, h, self.layer.q_width)
        if picked is not None:
            tape.free(picked)
            whole = rows.take(self.layer.q_width)
            tape.free(d_out)
            d_out = whole
        tape.free(branch)
        dq, dk, dv = self._attend_backward()
        tape.free(d_out)
        self.layer.drop(
            "q", "k", "out", "normaliser", "k_wide", "v_wide", "mask", "scores", "parts", "self_attn.o_proj h"
        )
        if not shape.fused_qkv:
            self.layer.drop("v")
        dk = self._rotate_backward(dk, self.layer.kv_width)
        dq = self._rotate_backward(dq, self.layer.q_width)
        if shape.qk_norm:
            rows.pulse(2 * self.layer.q_width)
            self.layer.drop("q_raw", "k_raw", "qk_inverse")
        if not self.layer.keeps_input and not any(name in self.ranks for name in QKV):
            tape.free(dq, dk, dv)
            return
        readers = [
            ("self_attn.v_proj", dv, self.layer.kv_width),
            ("self_attn.k_proj", dk, self.layer.kv_width),
            ("self_attn.q_proj", dq, self.layer.q_width),
        ]
        dn = self._read_backward(rows, readers, h, made=self.layer.grads)
        self.layer.drop("n1")
        after = self._norm_backward("norm1") if self.layer.keeps_input else None
        tape.free(dn, after)

    def _attend_backward(self) -> tuple[Held, Held, Held]:
        rows, shape = self.rows, self.shape
        repeated = (
            self.layer.plain and shape.heads != shape.kv_heads and shape.kv_heads % self.setup.threads != 0
        )
        width = self.layer.q_width if repeated or not self.layer.plain else self.layer.kv_width
        wide = [rows.take(self.layer.q_width), rows.take(self.layer.q_width)] if repeated else []
        dq, dk, dv = rows.take(self.layer.q_width), rows.take(width), rows.take(width)
        # of one product, before it is added
        part = Rows(self.tape, min(self.setup.longest, self.setup.tokens), rows.size)
        part.pulse(self.layer.q_width)
        if width != self.layer.kv_width:
            narrow = rows.take(self.layer.kv_width), rows.take(self.layer.kv_width)
            self.tape.free(dk, dv)
            dk, dv = narrow
        self.tape.free(*wide)
        return dq, dk, dv

    def _rotate_backward(self, grad: Held, width: int) -> Held:
        """Of `q cos + rotate_half(q) sin`: each half's gradient is written into zeros, and all are added up."""
        turned = self.rows.take(width)
        halves = self.rows.take(2 * width)
        self.tape.free(turned)
        plain = self.rows.take(width)
        self.tape.free(halves, grad)
        return plain

    def _read_backward(
        self, rows: Rows, readers: list[tuple[str, Held, int]], width: int, *, made: bool | None = None
    ) -> Held:
        """The gradient of what several matrices read, from those of their outputs, which are let go."""
        adapted = [name for name, _, _ in readers if name in self.ranks]
        again = None
        recipe = self.layer.recipes if made is None else made and self.layer.lean
        if recipe and adapted and rows.count == self.rows.count:
            again = rows.take(width)  # the norm's output, made again until the last reader had it
        total = None
        for name, grad, out in readers:
            dx = rows.take(width)
            self._weight_backward(name, rows, width, out)
            if name in self.ranks:
                self._adapter_backward(rows, out, width)
            if total is None:
                total = dx
            else:
                self.tape.free(dx)
            self.tape.free(grad)
            self.layer.drop(f"{name} h")
        self.tape.free(again)
        assert total is not None
        return total

    def _adapter_backward(self, rows: Rows, out: int, inner: int) -> None:
        """What a narrower type widens on the way."""
        if rows.size != WIDE:
            rows.pulse(out + 2 * inner, WIDE)

    def _weight_backward(self, name: str, rows: Rows, inner: int, out: int) -> None:
        if not self.layer.all_weights:
            return
        # under FSDP2 each process keeps its share, and `per_device` counts what is on its way
        share = self.setup.processes if self.setup.sharding == "fsdp2" else 1
        held = self.tape.take(inner * out * rows.size / share, "gradients")
        if not self.layer.first:
            self.tape.free(held)  # added to the one that is there

    def _norm_backward(self, name: str) -> Held:
        rows, h = self.rows, self.shape.hidden
        if self.layer.all_weights:
            parts = [rows.take(h, WIDE) for _ in range(3)]
        else:
            parts = [rows.take(h, WIDE), rows.take(h, WIDE)]
        if rows.size != WIDE:
            out = rows.take(h)
            self.tape.free(*parts)
        else:
            self.tape.free(*parts[1:])
            out = parts[0]
        self.layer.drop(f"{name} inverse", f"{name} unit", f"{name} wide")
        return out
