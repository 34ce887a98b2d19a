"""`LayerEvents`: what one decoder layer allocates and keeps in our engine, forward and backward, as events on a tape.

It follows what is computed line by line (`models.lean`, `models.attention`, `lora.fused`, and the layer of transformers),
for a layer like Llama's: T tokens, h hidden, I intermediate, a query and k key-value heads of width d, bytes e a number.
An adapter alone keeps for each token

    2 h      what the two norms read (the residual stream)
    2 a d    queries after rotation, and the attention's output
    2 k d    keys after rotation, and values
    2 I      gate and up
    r        for each adapted module, in fp32

and makes the outputs of norms and the gated product again. Where all weights are trained, every input of a matrix is kept
too. What is measured against it: `lab.planned`. Knows shapes and bytes; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.tape import Held, Tape

WIDE = 4  # bytes of fp32, in which adapters, norms and normalisers are


@dataclass
class Rows:
    """How many rows there are, and what a matrix of so many takes."""

    tape: Tape
    count: int
    size: int  # bytes of a number

    def take(self, width: float, size: int | None = None) -> Held:
        """A matrix of `count` rows."""
        return self.tape.take(self.bytes(width, size))

    def pulse(self, width: float, size: int | None = None) -> None:
        """A matrix that is let go at once."""
        self.tape.pulse(self.bytes(width, size))

    def bytes(self, width: float, size: int | None = None) -> int:
        """Bytes of a matrix of `count` rows."""
        return int(self.count * width * (self.size if size is None else size))


@dataclass
class LayerEvents:
    """One layer.

    Attributes:
        ranks: of the adapted modules, by their names within the layer (`self_attn.q_proj`).
        grads: the layer's input has a gradient: something below is trained.
        needed: rows that are read of the layer's output, of the last layer; None: all.
        all_weights: the base's weights are trained.
        windowed: the layer's attention looks back no further than the shape's window.
        first: gradients of weights stay, rather than being added to those that are there.
    """

    tape: Tape
    shape: Shape
    setup: Setup
    ranks: Mapping[str, int]
    grads: bool
    needed: int | None
    all_weights: bool
    windowed: bool
    title: str
    first: bool = True
    kept: dict[str, Held] = field(default_factory=dict)
    weight_grads: list[Held] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, size = self.shape, self.setup.activation_bytes
        self.rows = Rows(self.tape, self.setup.tokens, size)
        self.few = Rows(self.tape, self.setup.tokens if self.needed is None else self.needed, size)
        self.q_width = shape.heads * shape.head_dim
        self.kv_width = shape.kv_heads * shape.head_dim
        self.lean = not self.all_weights
        self.recipes = self.lean and self.grads
        self.active = self.all_weights or self.grads or bool(self.ranks)
        self.gate_kept = shape.gated and not shape.fused_gate_up

    # -- forward -----------------------------------------------------------------------------------

    def forward(self, x: Held) -> Held:
        """From the layer's input, which the caller lets go unless the layer keeps it (`keeps_input`)."""
        tape, rows, h = self.tape, self.rows, self.shape.hidden
        with tape.at(f"forward pass of {self.title}, attention"):
            y = self._attention_forward(x)
        if self.shape.norms_per_layer == 4:
            y = self._norm_after("attention", y)
        x2 = rows.take(h)
        tape.free(y)
        if not self.keeps_input:
            tape.free(x)
        with tape.at(f"forward pass of {self.title}, MLP"):
            y = self._mlp_forward(x2)
        if self.shape.norms_per_layer == 4:
            y = self._norm_after("mlp", y)
        x3 = rows.take(h)
        tape.free(y)
        if self._after_attention_has_grad:
            self.kept["x2"] = x2
        else:
            tape.free(x2)
        return x3

    @property
    def keeps_input(self) -> bool:
        """Whether the layer needs its input again."""
        return self.grads or self.all_weights

    @property
    def _after_attention_has_grad(self) -> bool:
        return self.keeps_input or any(name.startswith("self_attn") for name in self.ranks)

    def _attention_forward(self, x: Held) -> Held:
        tape, rows, shape = self.tape, self.rows, self.shape
        n1 = self._norm_forward("norm1", self.keeps_input)
        inside = ("qkv_proj",) if shape.fused_qkv else ("q_proj", "k_proj", "v_proj")
        self._reads("n1", n1, [f"self_attn.{name}" for name in inside], has_grad=self.keeps_input)
        if shape.fused_qkv:
            whole = rows.take(self.q_width + 2 * self.kv_width)
            raw, v = [whole], whole
        else:
            q, k, v = (rows.take(width) for width in (self.q_width, self.kv_width, self.kv_width))
            raw = [q, k]
        if shape.qk_norm:
            # the norms keep what they read, and give new queries and keys
            if self.active:
                self.kept["q_raw"], self.kept["k_raw"] = raw
                self._take_kept("qk_inverse", rows.take((shape.heads + shape.kv_heads), WIDE))
            raw = [rows.take(self.q_width), rows.take(self.kv_width)]
        q_turned = self._rotate(self.q_width)
        k_turned = self._rotate(self.kv_width)
        if not shape.fused_qkv:
            tape.free(*raw)
        out = self._attend()
        if self.active:
            self.kept |= {"q": q_turned, "out": out}
            if "k_wide" in self.kept:
                tape.free(k_turned, v)
            self.kept |= {"k": k_turned, "v": v}
        y = self._projected("self_attn.o_proj", out, shape.hidden, self.q_width)
        if not self.active:
            tape.free(q_turned, k_turned, v, out)
        if "n1" not in self.kept:
            tape.free(n1)
        return y

    def _rotate(self, width: int) -> Held:
        """`q cos + rotate_half(q) sin`: two products and a sum, of which the sum stays."""
        first = self.rows.take(width)
        turned = self.rows.take(width)
        self.rows.pulse(width / 2)
        second = self.rows.take(width)
        self.tape.free(turned)
        total = self.rows.take(width)
        self.tape.free(first, second)
        return total

    def _attend(self) -> Held:
        """The attention's output, and what it needs on the way."""
        rows, shape, setup = self.rows, self.shape, self.setup
        self._take_kept("normaliser", rows.take(shape.heads, WIDE))
        if self._plain:
            wide = rows.take(self.q_width, WIDE)
            # what one product gives before it is put together with the others
            part = Rows(self.tape, min(setup.longest, setup.tokens), rows.size)
            part.pulse(self.q_width + 3 * shape.heads * WIDE / rows.size)
            if rows.size == WIDE:
                return wide
            out = rows.take(self.q_width)
            self.tape.free(wide)
            return out
        if shape.heads != shape.kv_heads:
            self._take_kept("k_wide", rows.take(self.q_width))
            self._take_kept("v_wide", rows.take(self.q_width))
        if self.cut:
            mask = Rows(self.tape, setup.longest * setup.tokens, rows.size)
            self._take_kept("mask", mask.take(1))
        if shape.softcap:
            # each example's scores: capped and as shares are kept, two more come and go
            scores = Rows(self.tape, setup.longest * setup.longest, rows.size)
            count = setup.tokens / max(setup.longest, 1)
            self._take_kept("scores", scores.take(2 * shape.heads * count))
            scores.pulse(2 * shape.heads)
        parts = rows.take(self.q_width)
        joined = rows.take(self.q_width)
        out = rows.take(self.q_width)
        self.tape.free(joined)
        self._take_kept("parts", parts)
        return out

    @property
    def _plain(self) -> bool:
        """Whether `models.attention` takes the kernel that reads fewer key heads, tree and all."""
        return self.setup.device == "cpu" and not self.cut and not self.shape.softcap

    @property
    def cut(self) -> bool:
        """Whether the window leaves something out, so that there is a mask."""
        return self.windowed and self.shape.window is not None and self.shape.window < self.setup.longest

    def _projected(self, name: str, inner: Held, out: int, width: int) -> Held:
        """The output of the last matrix of attention or MLP, of the rows that are needed, among zeros for the others."""
        tape, few = self.tape, self.few
        seen = None if self.needed is None else few.take(width)
        y = few.take(out)
        self._low_rank(name, few)
        adapted = name in self.ranks
        if seen is not None and (adapted or self.all_weights):
            self.kept[f"{name} input"] = seen
        else:
            tape.free(seen)
        if self.needed is None:
            return y
        zeros = self.rows.take(out)
        whole = self.rows.take(out)
        tape.free(zeros, y)
        return whole

    def _mlp_forward(self, x2: Held) -> Held:
        tape, shape = self.tape, self.shape
        has_grad = self._after_attention_has_grad
        n2 = self._norm_forward("norm2", has_grad)
        few, inner = self.few, shape.intermediate
        names = [
            f"mlp.{name}" for name in (("gate_up_proj",) if shape.fused_gate_up else ("gate_proj", "up_proj"))
        ]
        if self.needed is None:
            self._reads("n2", n2, names, has_grad=has_grad)
            seen = None
        else:
            # rows picked out have no recipe
            seen = few.take(shape.hidden)
            for name in names:
                self._low_rank(name, few)
            if self.all_weights or any(name in self.ranks for name in names):
                self.kept["n2 rows"] = seen
        active = has_grad or any(name.startswith("mlp") for name in self.ranks)
        both = few.take(2 * inner if shape.gated else inner)
        acted = None if self.gate_kept else few.take(inner)
        product = few.take(inner) if shape.gated else acted
        y = self._mlp_output(product, inner)
        if active:
            self.kept["gate_up"] = both
            if acted is not None:
                self.kept["acted"] = acted
        else:
            tape.free(both, acted)
        keeps_product = self.all_weights or (
            not self.gate_kept and ("mlp.down_proj" in self.ranks or "mlp.fc2" in self.ranks)
        )
        if keeps_product and product is not None:
            self.kept["product"] = product
        elif product is not acted:
            tape.free(product)
        if seen is not None and "n2 rows" not in self.kept:
            tape.free(seen)
        if "n2" not in self.kept:
            tape.free(n2)
        return y

    def _mlp_output(self, product: Held | None, inner: int) -> Held:
        few = self.few
        y = few.take(self.shape.hidden)
        self._low_rank("mlp.down_proj", few)
        if self.needed is None:
            return y
        zeros = self.rows.take(self.shape.hidden)
        whole = self.rows.take(self.shape.hidden)
        self.tape.free(zeros, y)
        return whole

    def _norm_forward(self, name: str, has_grad: bool) -> Held:
        """A norm's output. Ours keeps one number a row besides its input; transformers' keeps the normalised x as well."""
        rows, h = self.rows, self.shape.hidden
        if has_grad and self.lean:
            self._take_kept(f"{name} inverse", rows.take(1, WIDE))
        if rows.size != WIDE:
            rows.pulse(2 * h, WIDE)
        if self.all_weights:
            self._take_kept(f"{name} unit", rows.take(h))
            if rows.size != WIDE:
                self._take_kept(f"{name} wide", rows.take(h, WIDE))
        return rows.take(h)

    def _norm_after(self, name: str, y: Held) -> Held:
        """A norm of a branch's output, which keeps what it reads (Gemma)."""
        out = self._norm_forward(f"{name} after", self.active)
        if self.active:
            self.kept[f"{name} output"] = y
        else:
            self.tape.free(y)
        return out

    def _reads(self, key: str, normed: Held, names: list[str], *, has_grad: bool) -> None:
        """Matrices that read a norm's output: an adapter keeps it where it has no recipe."""
        adapted = [name for name in names if name in self.ranks]
        for name in adapted:
            self._low_rank(name, self.rows)
        if self.all_weights or (adapted and not has_grad):
            self.kept[key] = normed

    def _low_rank(self, name: str, rows: Rows) -> None:
        """`x A^T` of an adapter, kept in fp32; a narrower x is widened for it."""
        rank = self.ranks.get(name)
        if rank is None:
            return
        self._take_kept(f"{name} h", rows.take(rank, WIDE))
        if rows.size != WIDE:
            rows.pulse(self.shape.hidden, WIDE)

    def _take_kept(self, name: str, held: Held) -> None:
        if self.active:
            self.kept[name] = held
        else:
            self.tape.free(held)

    # -- backward ----------------------------------------------------------------------------------

    def backward(self, g: Held) -> None:
        """From the gradient of the layer's output, which becomes that of its input in place."""
        with self.tape.at(f"backward pass of {self.title}, MLP"):
            self._mlp_backward()
        with self.tape.at(f"backward pass of {self.title}, attention"):
            self._attention_backward()
        self.tape.free(*self.kept.values())
        self.kept.clear()

    def _mlp_backward(self) -> None:
        tape, rows, few, shape = self.tape, self.rows, self.few, self.shape
        h, inner = shape.hidden, shape.intermediate
        branch = None
        if shape.norms_per_layer == 4:
            branch = self._norm_backward("mlp after")
            self._drop("mlp output")
        picked = None if self.needed is None else few.take(h)
        dproduct = few.take(inner)
        self._weight_backward("mlp.down_proj", few, inner, h)
        if "mlp.down_proj" in self.ranks:
            if self.gate_kept and not self.all_weights:
                few.pulse(inner)  # the product, made again
            self._adapter_backward(few, h, inner)
        tape.free(picked, branch)
        self._drop("product", "mlp.down_proj h", "mlp.down_proj input")
        if shape.gated:
            part = few.take(inner)  # gradient times up
            dgate = few.take(inner)
            if self.gate_kept:
                tape.free(part)
                dup = few.take(inner)
                tape.free(dproduct)
            else:
                tape.free(dproduct)
                self._drop("acted")
                silu = few.take(inner)
                self._drop("gate_up")
                both = few.take(2 * inner)  # the two halves' gradients, each written into zeros
                few.pulse(2 * inner)
                tape.free(dgate, part, silu)
                dgate = dup = both
        else:
            dgate = dup = few.take(inner)
            tape.free(dproduct)
        self._drop("gate_up", "acted")
        dn = self._read_backward(few, [("mlp.up_proj", dup, inner), ("mlp.gate_proj", dgate, inner)], h)
        if self.needed is not None:
            whole = rows.take(h)
            tape.free(dn)
            dn = whole
        self._drop("n2 rows", "n2")
        after = self._norm_backward("norm2")
        tape.free(dn, after)  # added to the residual stream's gradient in place
        self._drop("x2")

    def _attention_backward(self) -> None:
        tape, rows, shape = self.tape, self.rows, self.shape
        h = shape.hidden
        if not self._after_attention_has_grad:
            return
        branch = None
        if shape.norms_per_layer == 4:
            branch = self._norm_backward("attention after")
            self._drop("attention output")
        picked = None if self.needed is None else self.few.take(h)
        d_out = self.few.take(self.q_width)
        self._weight_backward("self_attn.o_proj", self.few, self.q_width, h)
        if "self_attn.o_proj" in self.ranks:
            self._adapter_backward(self.few, h, self.q_width)
        if picked is not None:
            tape.free(picked)
            whole = rows.take(self.q_width)
            tape.free(d_out)
            d_out = whole
        tape.free(branch)
        dq, dk, dv = self._attend_backward()
        tape.free(d_out)
        self._drop(
            "q", "k", "out", "normaliser", "k_wide", "v_wide", "mask", "scores", "parts", "self_attn.o_proj h"
        )
        if not shape.fused_qkv:
            self._drop("v")
        dk = self._rotate_backward(dk, self.kv_width)
        dq = self._rotate_backward(dq, self.q_width)
        if shape.qk_norm:
            rows.pulse(2 * self.q_width)
            self._drop("q_raw", "k_raw", "qk_inverse")
        if not self.keeps_input and not any(name in self.ranks for name in _QKV):
            tape.free(dq, dk, dv)
            return
        readers = [
            ("self_attn.v_proj", dv, self.kv_width),
            ("self_attn.k_proj", dk, self.kv_width),
            ("self_attn.q_proj", dq, self.q_width),
        ]
        dn = self._read_backward(rows, readers, h, made=self.grads)
        self._drop("n1")
        after = self._norm_backward("norm1") if self.keeps_input else None
        tape.free(dn, after)

    def _attend_backward(self) -> tuple[Held, Held, Held]:
        rows, shape = self.rows, self.shape
        repeated = self._plain and shape.heads != shape.kv_heads and shape.kv_heads % self.setup.threads != 0
        width = self.q_width if repeated or not self._plain else self.kv_width
        wide = [rows.take(self.q_width), rows.take(self.q_width)] if repeated else []
        dq, dk, dv = rows.take(self.q_width), rows.take(width), rows.take(width)
        # of one product, before it is added
        part = Rows(self.tape, min(self.setup.longest, self.setup.tokens), rows.size)
        part.pulse(self.q_width)
        if width != self.kv_width:
            narrow = rows.take(self.kv_width), rows.take(self.kv_width)
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
        recipe = self.recipes if made is None else made and self.lean
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
            self._drop(f"{name} h")
        self.tape.free(again)
        assert total is not None
        return total

    def _adapter_backward(self, rows: Rows, out: int, inner: int) -> None:
        """What a narrower type widens on the way."""
        if rows.size != WIDE:
            rows.pulse(out + 2 * inner, WIDE)

    def _weight_backward(self, name: str, rows: Rows, inner: int, out: int) -> None:
        if not self.all_weights:
            return
        # under FSDP2 each process keeps its share, and `per_device` counts what is on its way
        share = self.setup.processes if self.setup.sharding == "fsdp2" else 1
        held = self.tape.take(inner * out * rows.size / share, "gradients")
        if self.first:
            self.weight_grads.append(held)
        else:
            self.tape.free(held)

    def _norm_backward(self, name: str) -> Held:
        rows, h = self.rows, self.shape.hidden
        if self.all_weights:
            parts = [rows.take(h, WIDE) for _ in range(3)]
        else:
            parts = [rows.take(h, WIDE), rows.take(h, WIDE)]
        if rows.size != WIDE:
            out = rows.take(h)
            self.tape.free(*parts)
        else:
            self.tape.free(*parts[1:])
            out = parts[0]
        self._drop(f"{name} inverse", f"{name} unit", f"{name} wide")
        return out

    def _drop(self, *names: str) -> None:
        for name in names:
            self.tape.free(self.kept.pop(name, None))


_QKV = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
