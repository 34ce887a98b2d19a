"""`ScriptLayer`: one decoder layer of transformers with PEFT's LoRA in it, as operations on sizes.

Each method is a module of transformers 5 or PEFT 0.21 (`LlamaRMSNorm`, `apply_rotary_pos_emb`, `sdpa_attention_forward`,
`LlamaMLP`, `peft.tuners.lora.Linear`), operation by operation and with the same locals, since what a local holds is
allocated. What such a layer keeps for each token, with h hidden, I intermediate, a query and k key-value heads of width d,
e bytes a number, and an adapter in fp32 on modules that read n:

    2 h e'           what the norms read, in fp32 (e' is 4)
    (2 a + 2 k) d e  queries, keys, values and the attention's output
    3 I e            gate, what the activation makes of it, and up
    n e'             of each adapted module what it reads, a copy of its own where it is widened to fp32; with dropout
                     also what it is multiplied with (e' on the CPU, a byte on a GPU)

and where the batch has padding, or a layer a window, keys and values for every query head, and a mask of e bytes for each
pair of positions.

Read off the code and held against allocations on the CPU. On a GPU it follows the code: kernels of flash attention, and
of memory-efficient attention where there is a mask. Knows shapes and bytes; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scumble.plan.graph import Graph, Like, Parameter, Sized, same, view
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

WIDE = 4  # bytes of fp32, in which adapters are, and norms are computed

NAMES = frozenset(
    f"{block}.{name}"
    for block, names in {
        "self_attn": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "gate_up_proj", "down_proj", "fc1", "fc2"),
    }.items()
    for name in names
)


@dataclass(eq=False)
class ScriptLayer:
    """One layer.

    Attributes:
        ranks: of the adapted modules, by their names within the layer (`self_attn.q_proj`).
        others: widths of what adapted modules read that are none of a layer like Llama's (`NAMES`).
        masked: attention gets a mask, rather than being told that it is causal.
    """

    graph: Graph
    shape: Shape
    setup: Setup
    ranks: Mapping[str, int]
    others: Sequence[int]
    masked: bool
    title: str

    def __post_init__(self) -> None:
        shape, self.tokens = self.shape, self.setup.tokens
        self.whole = self.setup.method == "full"
        self.cpu = self.setup.device == "cpu"
        self.q_width = shape.heads * shape.head_dim
        self.kv_width = shape.kv_heads * shape.head_dim
        self.weights: dict[str, Parameter] = {}

    def __call__(self, x: Sized) -> Sized:
        """The layer's output."""
        shape, graph = self.shape, self.graph
        graph.doing = f"{self.title}, attention"
        normed = self.norm("input_layernorm", x, shape.hidden)
        y = self._attention(normed)
        if not shape.parallel:
            del normed
        if shape.norms_per_layer == 4:
            y = self.norm("post_attention_layernorm", y, shape.hidden)
        y = self._beside(y)
        middle = self._sum(x, y)
        del y
        graph.doing = f"{self.title}, MLP"
        y = self._mlp(
            normed if shape.parallel else self.norm("pre_feedforward_layernorm", middle, shape.hidden)
        )
        if shape.norms_per_layer == 4:
            y = self.norm("post_feedforward_layernorm", y, shape.hidden)
        return self._sum(middle, y)

    def _beside(self, y: Sized) -> Sized:
        """What adapters keep on modules that this layer has none of: their inputs, and nothing on the way."""
        kept = []
        for width in self.others:
            seen = self.graph.take(Like(self.tokens * width, WIDE))
            if self.setup.dropout:
                kept.append(self._noise(seen))
            kept.append(seen)
        return self.graph.op([y], y.count, rules=same, saves=kept, shares=y) if kept else y

    def _sum(self, x: Sized, y: Sized) -> Sized:
        return self.graph.op([x, y], x.count, rules=same)

    def trained(self, name: str, count: float, size: int) -> list[Parameter]:
        """A weight that is trained: one and the same each time its name is given."""
        return [self.weights.setdefault(name, Parameter(count, size))]

    # -- modules -----------------------------------------------------------------------------------

    def norm(self, name: str, x: Sized, width: int) -> Sized:
        """RMSNorm over `width`, of as many rows as there are."""
        op, rows = self.graph.op, x.count / width
        wide = x if x.size == WIDE else op([x], x.count, size=WIDE, rules=same)
        # the derivative of a square writes x, twice x, and the product
        square = op([wide], x.count, saves=[wide], within=(0, 2 * x.count * WIDE))
        mean = op([square], rows)
        del square
        inverse = op([mean], rows, saves_output=True)
        unit = op([wide, inverse], x.count, saves=[wide, inverse])
        if x.size == WIDE:
            return self._scaled(name, unit, width, x.size)
        if self.shape.norms_per_layer == 4:  # Gemma multiplies in fp32
            y = self._scaled(name, unit, width, x.size)
            return op([y], x.count, size=x.size, rules=same)
        unit = op([unit], x.count, size=x.size, rules=same)
        return self._scaled(name, unit, width, x.size)

    def _scaled(self, name: str, unit: Sized, width: int, size: int) -> Sized:
        """A norm's weight, whose gradient is summed up from a product with every row."""
        weight = self.trained(name, width, size) if self.whole else []
        saves, within = ([unit], unit.count * WIDE) if self.whole else ([], 0)
        return self.graph.op([unit], unit.count, saves=saves, keeps=True, trained=weight, within=(0, within))

    def linear(self, name: str, x: Sized, width: int, out: int, *, part: str = "activations") -> Sized:
        """A matrix, and the adapter beside it."""
        op, rank = self.graph.op, self.ranks.get(name)
        y = self._matrix(name, x, width, out, part)
        if rank is None:
            return y
        wide = x if x.size == WIDE else op([x], x.count, size=WIDE, rules=same)
        # the undropped one is a local of PEFT's
        seen = self._dropped(wide) if self.setup.dropout else wide
        add = self._magnitude if self.setup.dora else self._update
        update = add(name, y, seen, (width, out, rank))
        total = op([y, update], y.count, size=WIDE, rules=same, within=(self._widened(y), 0), part=part)
        size = y.size
        del update
        return total if size == WIDE else op([total], total.count, size=size, rules=same, part=part)

    def _update(self, name: str, y: Sized, seen: Sized, sizes: tuple[int, int, int]) -> Sized:
        """`lora_B(lora_A(x)) * scaling`."""
        update = self._low_rank(name, y, seen, sizes)
        return self.graph.op([update], y.count)

    def _low_rank(self, name: str, y: Sized, seen: Sized, sizes: tuple[int, int, int]) -> Sized:
        op, (width, out, rank) = self.graph.op, sizes
        a, b = self.trained(f"{name} A", rank * width, WIDE), self.trained(f"{name} B", rank * out, WIDE)
        low = op([seen], seen.count / width * rank, saves=[seen], trained=a)
        return op([low], y.count, saves=[low], trained=b)

    def _magnitude(self, name: str, y: Sized, seen: Sized, sizes: tuple[int, int, int]) -> Sized:
        """DoRA (`DoraLinearLayer`), which makes B A of an identity matrix, and with dropout the base's output again."""
        op, take, (width, out, rank) = self.graph.op, self.graph.take, sizes
        product = take(Like(width * (width + rank + out), WIDE))
        weight = take(Like(width * out, WIDE)) if y.size != WIDE else None
        self.graph.tape.pulse(2 * width * out * WIDE)
        update = self._low_rank(name, y, seen, sizes)
        base = y
        if self.setup.dropout:
            base = op([seen], y.count, saves=[weight] if weight else [], keeps=True)
        magnitude = self.trained(f"{name} magnitude", out, WIDE)
        within = (self._widened(base), y.count * WIDE)
        scaled = op([base], y.count, size=WIDE, saves=[base], trained=magnitude, within=within)
        update = op([update], y.count, saves=[update], within=(0, y.count * WIDE))
        update = op([update], y.count)
        total = op([scaled, update], y.count, rules=same)
        del product, weight
        return total

    def _widened(self, y: Sized) -> float:
        """The CPU widens the narrower of two types before it adds or multiplies them."""
        return y.count * WIDE if self.cpu and y.size != WIDE else 0

    def _matrix(self, name: str, x: Sized, width: int, out: int, part: str) -> Sized:
        rows = x.count / width
        weight = self.trained(name, width * out, x.size) if self.whole else []
        return self.graph.op(
            [x],
            rows * out,
            saves=[x] if self.whole else [],
            keeps=True,
            trained=weight,
            part=part,
        )

    def _dropped(self, x: Sized) -> Sized:
        return self.graph.op([x], x.count, saves=[self._noise(x)])

    def _noise(self, x: Sized) -> Sized:
        """What dropout keeps: the CPU what it multiplies with, in x's type, a GPU a byte for each number."""
        return self.graph.take(Like(x.count, x.size if self.cpu else 1))

    # -- attention ---------------------------------------------------------------------------------

    def _attention(self, x: Sized) -> Sized:
        shape, op = self.shape, self.graph.op
        h, a, k = shape.hidden, self.q_width, self.kv_width
        if shape.fused_qkv:
            joined = self.linear("self_attn.qkv_proj", x, h, a + 2 * k)
            query, key, value = (self._part(joined, width) for width in (a, k, k))
        else:
            query = self.linear("self_attn.q_proj", x, h, a)
            if shape.qk_norm:
                query = self.norm("self_attn.q_norm", query, shape.head_dim)
            key = self.linear("self_attn.k_proj", x, h, k)
            if shape.qk_norm:
                key = self.norm("self_attn.k_norm", key, shape.head_dim)
            value = self.linear("self_attn.v_proj", x, h, k)
        query, key = self._rotate(query), self._rotate(key)
        out = (self._scores if shape.softcap else self._attend)(query, key, value)
        # rows by token; a copy where queries were put together by head, which the kernel's output follows
        out = op([out], out.count, rules=same, shares=None if self._by_head else out)
        return self.linear("self_attn.o_proj", out, a, h)

    def _part(self, joined: Sized, width: int) -> Sized:
        """Columns of a matrix: a view, whose gradient is written among zeros."""
        return self.graph.op([joined], self.tokens * width, shares=joined)

    def _rotate(self, x: Sized) -> Sized:
        """`(x * cos) + (rotate_half(x) * sin)`."""
        op, half = self.graph.op, x.count / 2
        plain = op([x], x.count, keeps=True)
        first = op([x], half, shares=x)
        second = op([x], half, shares=x)
        negated = op([second], half)
        turned = op([negated, first], x.count, rules=view)
        del first, second, negated
        turned = op([turned], x.count, keeps=True)
        total = op([plain, turned], x.count, rules=same)
        del plain, turned
        return op([total], x.count, rules=view) if self._by_head else total

    @property
    def _by_head(self) -> bool:
        """Whether rotation joins its result with columns that are not rotated, though there be none (Phi-3)."""
        return self.shape.fused_qkv

    def _attend(self, query: Sized, key: Sized, value: Sized) -> Sized:
        """Fused attention: no matrix of scores is kept. A mask is written out in the queries' type, for each layer."""
        op, size = self.graph.op, query.size
        grouped = self.shape.heads != self.shape.kv_heads
        fused = [query, key, value]
        if self.masked:
            if grouped:
                key, value = self._repeated(key), self._repeated(value)
            mask = self.graph.take(Like(self.tokens * self.setup.longest, size))
            fused = [query, key, value, mask]
        elif grouped and not self.cpu and size == WIDE:
            # no fused kernel of a GPU takes fp32 with fewer key heads
            return self._scores(query, key, value)
        normaliser = self.graph.take(Like(self.tokens * self.shape.heads, WIDE))
        # the CPU packs keys and values of a narrower type; a GPU adds up the queries' gradient in fp32, and flash
        # attention makes those of keys and values for every head before it sums them up
        packed = (key.count + value.count) * size if self.cpu and size != WIDE else 0
        summed = 0 if self.cpu or size == WIDE else query.count * WIDE
        if not self.cpu and key.count != query.count:
            summed += 2 * query.count * size
        return op(
            fused[:3],
            query.count,
            saves=[*fused, normaliser],
            saves_output=True,
            within=(packed, packed / 2 + summed),
        )

    def _repeated(self, x: Sized) -> Sized:
        """`repeat_kv`, which is a view where there is one key head."""
        return self.graph.op([x], self.tokens * self.q_width, shares=x if self.shape.kv_heads == 1 else None)

    def _scores(self, query: Sized, key: Sized, value: Sized) -> Sized:
        """Attention with its matrix of scores (`eager_attention_forward`)."""
        op, count = self.graph.op, self.tokens * self.setup.longest * self.shape.heads
        size = query.size
        if self.shape.heads != self.shape.kv_heads:
            key, value = self._repeated(key), self._repeated(value)
        scores = op([query, key], count, saves=[query, key])
        scores = op([scores], count)
        if self.shape.softcap:
            scores = op([scores], count)
            scores = op([scores], count, saves_output=True)
            scores = op([scores], count)
        scores = op([scores], count, rules=same)
        shares = op([scores], count, size=WIDE, saves_output=True)
        del scores
        if size != WIDE:
            shares = op([shares], count, size=size, rules=same)
        return op([shares, value], query.count, saves=[shares, value])

    # -- MLP ---------------------------------------------------------------------------------------

    def _mlp(self, x: Sized) -> Sized:
        shape, op, h = self.shape, self.graph.op, self.shape.hidden
        inner = shape.intermediate * max(1, shape.experts_per_token)
        if not shape.gated:
            up = self.linear("mlp.fc1", x, h, inner)
            return self.linear("mlp.fc2", op([up], up.count, saves=[up]), inner, h)
        if shape.fused_gate_up:
            joined = self.linear("mlp.gate_up_proj", x, h, 2 * inner)
            gate, up = self._part(joined, inner), self._part(joined, inner)
            acted = op([gate], gate.count, saves=[gate])
            product = op([up, acted], up.count, saves=[up, acted])
            del acted
            return self.linear("mlp.down_proj", product, inner, h)
        gate = self.linear("mlp.gate_proj", x, h, inner)
        acted = op([gate], gate.count, saves=[gate])
        del gate
        up = self.linear("mlp.up_proj", x, h, inner)
        product = op([acted, up], up.count, saves=[acted, up])
        del acted, up
        return self.linear("mlp.down_proj", product, inner, h)
