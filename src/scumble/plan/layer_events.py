"""`LayerEvents`: what one decoder layer allocates and keeps in our engine's forward pass, as events on a tape.

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
from scumble.plan.tape import Held, Rows, Tape

WIDE = 4  # bytes of fp32, in which adapters, norms and normalisers are
QKV = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"))


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
        if self.grads_after_attention:
            self.kept["x2"] = x2
        else:
            tape.free(x2)
        return x3

    @property
    def keeps_input(self) -> bool:
        """Whether the layer needs its input again."""
        return self.grads or self.all_weights

    @property
    def grads_after_attention(self) -> bool:
        """Whether what the MLP reads has a gradient."""
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
        if self.plain:
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
    def plain(self) -> bool:
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
        has_grad = self.grads_after_attention
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
        active = has_grad or any(name in self.ranks for name in names)
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
        recipe = self.gate_kept and active
        keeps_product = self.all_weights or ("mlp.down_proj" in self.ranks and not recipe)
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

    def drop(self, *names: str) -> None:
        """Let go of what was kept under these names."""
        for name in names:
            self.tape.free(self.kept.pop(name, None))
