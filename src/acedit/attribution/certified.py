"""The top value neurons, certified: as exact scoring of every neuron gives them, at a fraction of its cost.

    found = certified_top(lm, ["Ann Lee is a citizen of"], ["Peru"], k=10)
    found[0][5].neurons             # the ten of layer 5, best first, as Neuron
    found[0][5].rescored            # how many of its neurons had to be scored exactly

With the final norm's scale frozen, a neuron moves the logits by δ = c·a, a its logits and c a number of the
prompt, and Eq. 9 is I = δ_w − log E_p[e^δ]. Split the vocabulary into the h heaviest tokens of p and the
rest, T. Over the heavy ones the sum is exact; over T, E_T[e^δ] is at least e^E_T[δ] (Jensen), and at most
what Bennett's inequality makes of δ's variance there and of how far it strays. The variance is at most the
largest share of a token in T times Σ_t (δ_t − δ̄)² over the whole vocabulary, which `spread` knows of every
neuron. That takes h + 3 products with the subvalues instead of one with every token. Only neurons whose
interval reaches the k-th best are then scored exactly, in float32 with its rounding bounded, and in float64
where that leaves an order open.

Every interval counts rounding: the true score, of the weights as they are and the activations as recorded,
lies inside. Scores that float64 cannot tell apart are reported as ties, and stand lowest index first.

Footguns: frozen norm only (`value.neuron_scores` has `norm="exact"`); logits before a cap; biases are
nobody's; the unedited model only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acedit.attribution.directions import lengths, neuron_directions, rounding, unscaled, whole_products
from acedit.attribution.spread import Spread, measure_spread
from acedit.attribution.value import Neuron, Tokens, readings, refuse_unlike
from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.trace import Trace, trace

HEAVY = 32  # tokens of p taken exactly
CPU_TILE, GPU_TILE = 1 << 19, 1 << 24  # numbers of W_U at a time: what a core's cache, and a kernel, like
ROWS = 1024  # neurons scored exactly in one sweep over the vocabulary
# Bytes of a layer's bounds at a time: one reading's stay in a core's cache, a GPU wants many at once.
CPU_BOUNDS, GPU_BOUNDS = 1, 1 << 27
ROOM = 2 << 30  # bytes that the distributions of one round may take, and what is made of them on the way
DOUBT = 1e-10  # nats; what float64 logarithms and sums may be off at least, and so what counts as a tie


@dataclass(frozen=True)
class Base:
    """p of Eq. 9's base, a row for each reading and layer (float64).

    pulls: what a neuron's direction is multiplied with: W_U's row of w, its mean over the tail T, that less
    its mean over all tokens, then its row of each heavy token. heavy: log p of the heavy tokens. tail:
    log p(T). most: the largest share a token of T has in it.
    """

    log_p: Float[Tensor, "rows vocab"]
    pulls: Float[Tensor, "rows heavy_plus_3 d_model"]
    heavy: Float[Tensor, "rows heavy"]
    tail: Float[Tensor, " rows"]
    most: Float[Tensor, " rows"]

    @classmethod
    def of(
        cls,
        unembedding: Float[Tensor, "vocab d_model"],
        log_p: Float[Tensor, "rows vocab"],
        token: Int[Tensor, " rows"],
        centre: Float[Tensor, " d_model"],
        *,
        heavy: int = HEAVY,
    ) -> "Base":
        """One sweep over the unembedding for all rows; token: w of each; centre: the unembedding's mean."""
        h = min(heavy, log_p.shape[1] - 1)
        top, ids = log_p.topk(h, dim=1)
        rest = log_p.scatter(1, ids, -torch.inf)
        peak = rest.amax(1, keepdim=True)
        rest = (rest - peak).exp()  # in units of the tail's likeliest token, which may be far below any float
        total = rest.sum(1)
        mean = torch.zeros(len(log_p), unembedding.shape[1], dtype=log_p.dtype, device=log_p.device)
        for some, tile in _tiles(unembedding):
            mean += rest[:, some] @ tile.to(mean)
        mean = mean / total[:, None]
        pulls = [
            torch.stack([unembedding[token.to(unembedding.device)].to(mean), mean, mean - centre], 1),
            unembedding[ids.to(unembedding.device)].to(mean),
        ]
        return cls(log_p, torch.cat(pulls, dim=1), top, peak[:, 0] + total.log(), 1 / total)

    def bounds(
        self,
        row: Int[Tensor, " some"],
        products: Float[Tensor, "some n heavy_plus_3"],
        slack: Float[Tensor, "some n"],
        energy: Float[Tensor, "some n"],
        reach: Float[Tensor, "some n"],
    ) -> tuple[Float[Tensor, "some n"], Float[Tensor, "some n"]]:
        """Lower and upper bounds of Eq. 9 (nats) against some rows of p, float64.

        products: of each neuron with `pulls`, off by at most `slack`: δ_w, E_T[δ], that less ē's δ̄, δ of the
        heavy tokens. energy, reach: Σ_t (δ_t − δ̄)² over the vocabulary and the largest |δ_t − δ̄|, or more.
        Good for p as it stands in `log_p`.
        """
        wanted, mean, shift = products[..., 0], products[..., 1], products[..., 2].abs() + slack
        known, tail = self.heavy[row][:, None] + products[..., 3:], self.tail[row][:, None]
        upper = wanted - torch.cat([(tail + mean)[..., None], known], dim=-1).logsumexp(-1) + 2 * slack
        # A variance is at most the mean square about any point, here ē's logit.
        grown = _growth(self.most[row][:, None] * energy, reach + shift)
        worst = tail + mean + slack + grown
        lower = wanted - slack - torch.cat([worst[..., None], known + slack[..., None]], dim=-1).logsumexp(-1)
        return lower, upper


def _growth(square: Float[Tensor, "*n"], most: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log of the largest E[e^x] of an x with mean 0, |x| ≤ most and E[x²] ≤ square.

    Bennett 1962, equation 10 of Hoeffding 1963: the x that is `most` or -square / most.
    """
    most = most.clamp(min=1e-100)
    square = torch.minimum(square, most.square())
    up, down = square.log() + most, 2 * most.log() - square / most
    return (torch.logaddexp(up, down) - (most.square() + square).log()).clamp(min=0)


def exact(
    unembedding: Float[Tensor, "vocab d_model"],
    log_p: Float[Tensor, "rows vocab"],
    row: Int[Tensor, " n"],
    directions: Float[Tensor, "n d_model"],
    scale: Float[Tensor, " n"],
    token: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Eq. 9 (nats) of the neurons whose logits are scale · W_U direction, each against its row of p.

    Products and exponentials are in `directions`' precision, which `log_p` shares, sums in float64; see
    `coarseness`. Makes n × tile numbers, never n × vocab.
    """
    top = torch.full_like(scale, -torch.inf)
    total = torch.zeros_like(scale)
    narrow = scale.to(directions)[:, None]
    for some, tile in _tiles(unembedding):
        terms = (directions @ tile.to(directions).T).mul_(narrow).add_(log_p[row, some])
        reach = torch.maximum(top, terms.amax(1).to(top))
        # `reach` came from `terms`, so it is the same number in their precision.
        new = terms.sub_(reach.to(terms)[:, None]).exp_().sum(1, dtype=total.dtype)
        total = total * (top - reach).exp() + new
        top = reach
    own = unembedding[token.to(unembedding.device)].to(directions)
    wanted = (directions * own).double().sum(1) * scale
    return wanted - top - total.log()


def _tiles(unembedding: Float[Tensor, "vocab d_model"]) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the vocabulary, and W_U's rows there."""
    most = CPU_TILE if unembedding.device.type == "cpu" else GPU_TILE
    size = max(64, most // unembedding.shape[1])
    for start in range(0, len(unembedding), size):
        yield slice(start, start + size), unembedding[start : start + size]


def coarseness(
    dtype: torch.dtype, delta: Float[Tensor, " n"], log_p: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """What `exact` may be off (nats) by rounding exponents and exponentials, the products aside.

    delta, log_p: the largest |δ| and |log p| of each row. An exponent x = δ + log p − max is rounded five
    times (the scale, the product, log p, the sum, the difference), by at most u each of what it is then; of
    an x below −104, e^x is nothing in float32; e^x itself is good to 4 u (two units in the last place).
    """
    u = torch.finfo(dtype).eps / 2
    return u * (3 * delta + 2 * log_p + 112)


@dataclass(frozen=True)
class Certified:
    """The k best of `of` neurons, and the proof.

    neurons: best first. low, high: bounds of each one's score (nats). rest: no neuron left out scores more
    than this (nats). rescored: how many were scored exactly. ties: chains of neurons, as (layer, index), that
    float64 cannot order whole, since one's interval meets the next, those left out for one with the k-th
    included; of two whose own intervals do not meet the better still stands first.
    """

    neurons: tuple[Neuron, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rest: float
    rescored: int
    of: int
    ties: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclass(frozen=True)
class LayerSum:
    """The sum of a layer's neurons' scores (Eq. 9, right), nats: within `error` of `value`."""

    value: float
    error: float


@dataclass(frozen=True)
class _Readings:
    """Where tokens are read: rows and positions of a trace, the tokens, and whose prompt each is."""

    row: Int[Tensor, " readings"]
    position: Int[Tensor, " readings"]
    token: Int[Tensor, " readings"]
    prompt: Int[Tensor, " readings"]


class _Rival(NamedTuple):
    """A neuron that may be among the best: its place on the board, bounds (nats) and level."""

    place: int
    low: float
    high: float
    level: int


def _groups(rivals: list[_Rival]) -> list[list[_Rival]]:
    """Rivals in chains of overlapping intervals, best first: within a chain nothing is ordered yet."""
    groups: list[list[_Rival]] = []
    floor = 0.0
    for rival in sorted(rivals, key=lambda r: (-r.high, -r.low, r.place)):
        if groups and rival.high >= floor:
            groups[-1].append(rival)
            floor = min(floor, rival.low)
        else:
            groups.append([rival])
            floor = rival.low
    return groups


def _ordered(group: list[_Rival]) -> list[_Rival]:
    """A chain so that none comes after one that it is proven to beat; by index where nothing is proven."""
    left, found = sorted(group, key=lambda r: r.place), []
    while left:
        floor = max(r.low for r in left)
        first = next(r for r in left if r.high >= floor)
        left.remove(first)
        found.append(first)
    return found


class _Board:
    """Bounds of every neuron at every layer of some prompts, tightened where asked.

    A neuron's place is its index in (prompts, layers, n_neurons), flat. level: 0 bounds, 1 scored exactly
    in the model's working precision, 2 in float64, 3 silent: its score is known to be nothing.
    """

    def __init__(self, lm: LanguageModel, spread: Spread, t: Trace, at: _Readings, prompts: int) -> None:
        self._lm, self._at, self._spread = lm, at, spread
        self._work = lm.wide
        shape = (prompts, lm.n_layers, lm.n_neurons)
        self.low = torch.zeros(shape, dtype=torch.float64, device=lm.device)
        self.high = torch.zeros_like(self.low)
        self.level = torch.zeros(shape, dtype=torch.int8, device=lm.device)
        self._base, self._scale, self._off, self._doubt = _base(lm, t, at, spread)
        log_p = self._base.log_p
        self._log_p = {torch.float64: log_p, self._work: log_p.to(self._work)}
        self._least = log_p.amin(1).abs()
        with whole_products(lm.device):
            for layer in range(lm.n_layers):
                self._bound(layer)
        self.level[(self.low == 0) & (self.high == 0)] = 3

    def _bound(self, layer: int) -> None:
        lm = self._lm
        vectors = lm.subvalues(layer).to(lm.device, self._work)
        long = lengths(vectors)
        rows = torch.arange(len(self._at.row), device=lm.device) * lm.n_layers + layer
        # γ goes to the few readers instead of the many neurons.
        readers = self._base.pulls[rows]
        for norm in (lm.final_norm, lm.ffn_post_norm(layer)):
            if norm is not None:
                readers = unscaled(lm, norm).transpose(readers)
        products = (vectors @ readers.flatten(0, 1).to(self._work).T).unflatten(1, readers.shape[:2])
        # The tail's mean was summed over the vocabulary in float64.
        summed = len(lm.unembedding) * torch.finfo(torch.float64).eps
        rounded = rounding(lm.d_model, self._work) + summed + self._off[:, layer]
        off = rounded * readers.norm(dim=2).amax(1)
        stretched, scale = 1 + self._off[:, layer, None], self._scale[:, layer]
        most = CPU_BOUNDS if rows.is_cpu else GPU_BOUNDS
        together = max(1, most // (8 * products[:, 0].numel()))
        for some in torch.arange(len(rows), device=rows.device).split(together):
            size = scale[some].abs()
            low, high = self._base.bounds(
                rows[some],
                products[:, some].transpose(0, 1).double() * scale[some, :, None],
                off[some, None] * long * size,
                self._spread.energy[layer] * (size * stretched[some]).square(),
                self._spread.reach[layer] * size * stretched[some],
            )
            if not bool((torch.isfinite(high) & ~torch.isnan(low)).all()):
                raise UserError(f"layer {layer}: the logits of its neurons overflow")
            idle, doubt = size == 0, self._doubt[rows[some], None]
            for board, bound in ((self.low, low - doubt), (self.high, high + doubt)):
                board[:, layer].index_add_(0, self._at.prompt[some], bound.masked_fill(idle, 0.0))

    def rescore(self, places: Int[Tensor, " n"], level: int) -> None:
        """Exact scores of the neurons at `places`, each once."""
        if not len(places):
            return
        with whole_products(self._lm.device):
            for some in places.split(ROWS):
                self._rescore(some, level)

    def _rescore(self, places: Int[Tensor, " n"], level: int) -> None:
        lm, at = self._lm, self._at
        dtype = self._work if level == 1 else torch.float64
        places = places[(places // lm.n_neurons % lm.n_layers).argsort(stable=True)]
        index = places % lm.n_neurons
        layer = places // lm.n_neurons % lm.n_layers
        prompt = places // (lm.n_neurons * lm.n_layers)
        directions = torch.cat(
            [neuron_directions(lm, i, index[layer == i], dtype=dtype) for i in layer.unique().tolist()]
        )
        # A place is scored at each of its prompt's readings.
        which, reading = (prompt[:, None] == at.prompt).nonzero(as_tuple=True)
        scale = self._scale[reading, layer[which], index[which]]
        row = reading * lm.n_layers + layer[which]
        scores = exact(
            lm.unembedding,
            self._log_p[dtype],
            row,
            directions[which],
            scale,
            at.token[reading],
        )
        reach = self._spread.longest * lengths(directions)[which] * scale.abs()
        off = rounding(lm.d_model, dtype) + self._off[reading, layer[which]]
        error = 2 * off * reach + coarseness(dtype, reach, self._least[row]) + self._doubt[row]
        total = torch.zeros(len(places), dtype=torch.float64, device=lm.device)
        middle, around = total.index_add(0, which, scores), total.index_add(0, which, error)
        self.low.view(-1)[places], self.high.view(-1)[places] = middle - around, middle + around
        self.level.view(-1)[places] = 2 if dtype == torch.float64 else 1

    def best(self, k: int, step: int) -> list[tuple[Certified, ...]]:
        """Each prompt's k best neurons of every `step` layers, proven; all are settled side by side."""
        size = step * self._lm.n_neurons
        while len(places := self._undecided(k, size)):
            self.rescore(places, 1)
        while len(places := self._unordered(spans := self._rivals(k, size))):
            self.rescore(places, 2)
        parts = self._certified(k, size, spans)
        each = self._lm.n_layers // step
        return [tuple(parts[i : i + each]) for i in range(0, len(parts), each)]

    def _may_be_best(self, k: int, size: int) -> Bool[Tensor, "spans size"]:
        """Whether a neuron may be among the k best of its span of `size`."""
        bar = self.low.view(-1, size).topk(k, dim=1).values[:, -1:]
        return self.high.view(-1, size) >= bar

    def _undecided(self, k: int, size: int) -> Int[Tensor, " n"]:
        """The most promising of each span's rivals that only bounds speak for."""
        vague = self._may_be_best(k, size) & (self.level.view(-1, size) == 0)
        found = self.high.view(-1, size).masked_fill(~vague, -torch.inf).topk(min(max(k, 8), size), dim=1)
        first = torch.arange(0, vague.numel(), size, device=vague.device)[:, None]
        return (first + found.indices)[found.values > -torch.inf]

    def _rivals(self, k: int, size: int) -> list[list[list[_Rival]]]:
        """Each span's neurons that may be among its k best, in groups."""
        places = self._may_be_best(k, size).view(-1).nonzero()[:, 0]
        columns = (x.view(-1)[places].tolist() for x in (self.low, self.high, self.level))
        spans: list[list[_Rival]] = [[] for _ in range(self.low.numel() // size)]
        for rival in map(_Rival, places.tolist(), *columns):
            spans[rival.place // size].append(rival)
        return [_groups(rivals) for rivals in spans]

    def _unordered(self, spans: list[list[list[_Rival]]]) -> Int[Tensor, " n"]:
        """Rivals whose order float32 leaves open."""
        chains = [group for groups in spans for group in groups if len(group) > 1]
        open_ = [rival.place for group in chains for rival in group if rival.level < 2]
        return torch.tensor(open_, dtype=torch.long, device=self.low.device)

    def _neuron(self, place: int) -> tuple[int, int]:
        """(layer, index) of a place."""
        return place // self._lm.n_neurons % self._lm.n_layers, place % self._lm.n_neurons

    def _certified(self, k: int, size: int, spans: list[list[list[_Rival]]]) -> list[Certified]:
        chosen = [[rival for group in each for rival in _ordered(group)][:k] for each in spans]
        left = self.high.clone().view(-1)
        left[torch.tensor([r.place for best in chosen for r in best], device=left.device)] = -torch.inf
        rest = left.view(-1, size).amax(1).tolist()
        level = self.level.view(-1, size)
        rescored = ((level == 1) | (level == 2)).sum(1).tolist()
        return [
            Certified(
                neurons=tuple(Neuron(*self._neuron(r.place), (r.low + r.high) / 2) for r in best),
                low=tuple(r.low for r in best),
                high=tuple(r.high for r in best),
                rest=rest[i],
                rescored=rescored[i],
                of=size,
                ties=tuple(
                    tuple(self._neuron(place) for place in sorted(r.place for r in group))
                    for group in spans[i]
                    if len(group) > 1 and any(r in best for r in group)
                ),
            )
            for i, best in enumerate(chosen)
        ]

    def at_least(self, limit: Float[Tensor, " prompts"]) -> Int[Tensor, "prompts layers"]:
        """How many neurons score no less than their prompt's limit; those that float64 leaves open by their
        middle."""
        bar = limit[:, None, None]
        for level in (1, 2):
            vague = (self.low < bar) & (self.high >= bar) & (self.level < level)
            self.rescore(vague.view(-1).nonzero()[:, 0], level)
        return ((self.low + self.high) / 2 >= bar).sum(-1)

    def layer_sums(self, tolerance: float) -> list[tuple[LayerSum, ...]]:
        """Every layer's sum, its widest intervals scored exactly until the error is within `tolerance`."""
        while True:
            errors = (self.high - self.low) / 2
            total = errors.sum(-1)
            loose = errors.masked_fill((self.level > 1) | (total <= tolerance)[..., None], -1.0)
            widest = loose.topk(min(64, self._lm.n_neurons), dim=-1)
            start = torch.arange(total.numel(), device=total.device).view(total.shape) * self._lm.n_neurons
            places = (widest.indices + start[..., None])[widest.values >= 0]
            if not len(places):
                break
            level = self.level.view(-1)[places]
            self.rescore(places[level == 0], 1)
            self.rescore(places[level == 1], 2)
        values = ((self.low + self.high) / 2).sum(-1)
        return [
            tuple(LayerSum(v, e) for v, e in zip(row, off, strict=True))
            for row, off in zip(values.tolist(), total.tolist(), strict=True)
        ]


def _base(
    lm: LanguageModel, t: Trace, at: _Readings, spread: Spread
) -> tuple[
    Base,
    Float[Tensor, "readings layers n_neurons"],
    Float[Tensor, "readings layers"],
    Float[Tensor, " rows"],
]:
    """p at h^{l-1} + A^l, a row a reading and layer; each neuron's scale c there; what float64 may have taken
    from c, as a share of it, and from scores by way of p's logits (nats, `DOUBT` at least)."""
    t.refuse_overflow(at.row.tolist(), at.position.tolist())
    residual = t.residual[:, at.row, at.position].double()
    final = lm.freeze_norm(lm.final_norm, residual[-1, :, None])
    stream = residual[:-1] + t.attention[:, at.row, at.position].double()
    start = final.apply(stream.transpose(0, 1), bias=True).flatten(0, 1)
    logits = torch.cat([start @ tile.to(start).T for _, tile in _tiles(lm.unembedding)], dim=1)
    doubt = 4 * rounding(lm.d_model, torch.float64) * spread.longest * start.norm(dim=1)
    if lm.head_bias is not None:
        logits = logits + lm.head_bias.to(logits)
        doubt = doubt + 4 * torch.finfo(torch.float64).eps * float(lm.head_bias.abs().max())
    coefficients = t.coefficients[:, at.row, at.position].double().transpose(0, 1)
    scale = coefficients * final.inverse_scale
    off = torch.zeros_like(scale[..., 0])
    for layer in range(lm.n_layers):
        norm = lm.ffn_post_norm(layer)
        if norm is not None:
            subvalues = lm.subvalues(layer).to(coefficients)
            whole = coefficients[:, layer] @ subvalues
            bias = lm.down_bias(layer)
            whole = whole if bias is None else whole + bias.to(whole)
            scale[:, layer] *= lm.freeze_norm(norm, whole).inverse_scale
            # What neurons take from each other is lost to the sum's rounding.
            parts = coefficients[:, layer].abs() @ subvalues.abs()
            lost = parts.norm(dim=1) / whole.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
            off[:, layer] = rounding(lm.n_neurons, torch.float64) * lost
    tokens = at.token.repeat_interleave(lm.n_layers)
    base = Base.of(lm.unembedding, logits.log_softmax(-1), tokens, spread.mean)
    return base, scale, off, doubt + DOUBT


@torch.no_grad()
def certified_top(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    k: int = 10,
    scope: Literal["layer", "model"] = "layer",
    spread: Spread | None = None,
    tokens: Tokens = "first",
    position: int | None = None,
    together: bool = False,
) -> list[tuple[Certified, ...]]:
    """Each prompt's k best value neurons (Eq. 9, frozen norm): an entry a layer, or one for the model.

    together: one result for all prompts, by the sum of their scores; their distributions are all held at
    once, prompts × layers × vocabulary.

    spread: measured (and kept on disk) if not given. Raises UserError for k outside 1 to N, a spread of
    another model, a patched model, or what `readings` refuses.
    """
    most = lm.n_neurons * (1 if scope == "layer" else lm.n_layers)
    if scope not in ("layer", "model"):
        raise UserError(f"scope is {scope!r}: give layer or model")
    if not 1 <= k <= most:
        raise UserError(f"k is {k}: ask for 1 to {most} neurons")
    step = 1 if scope == "layer" else lm.n_layers
    boards = _boards(lm, prompts, answers, spread, tokens, position, together)
    return [found for board in boards for found in board.best(k, step)]


@torch.no_grad()
def certified_layer_sums(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tolerance: float = 0.01,
    spread: Spread | None = None,
    tokens: Tokens = "first",
    position: int | None = None,
    together: bool = False,
) -> list[tuple[LayerSum, ...]]:
    """Each prompt's layer scores (Eq. 9, right), a `LayerSum` a layer, to `tolerance` nats or as near as
    float64 comes.

    together: one result for all prompts, by the sum of their scores. Raises as `certified_top`.
    """
    boards = _boards(lm, prompts, answers, spread, tokens, position, together)
    return [sums for board in boards for sums in board.layer_sums(tolerance)]


@torch.no_grad()
def certified_counts(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    limits: Sequence[float],
    *,
    spread: Spread | None = None,
    tokens: Tokens = "first",
    position: int | None = None,
) -> Int[Tensor, "prompts layers"]:
    """How many neurons of each layer score no less (Eq. 9) than their prompt's limit (nats).

    Raises UserError as `certified_top` does, for limits that are NaN, or not as many as prompts.
    """
    if len(limits) != len(prompts):
        raise UserError(f"{len(prompts)} prompts but {len(limits)} limits: give one limit a prompt")
    if any(math.isnan(limit) for limit in limits):
        raise UserError("a limit is NaN: give a number of nats")
    left = torch.tensor(limits, dtype=torch.float64, device=lm.device)
    counts = []
    for board in _boards(lm, prompts, answers, spread, tokens, position, False):
        counts.append(board.at_least(left[: len(board.low)]))
        left = left[len(board.low) :]
    return torch.cat(counts)


def _boards(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    spread: Spread | None,
    tokens: Tokens,
    position: int | None,
    together: bool,
) -> Iterator[_Board]:
    """Boards of as many prompts as keep their distributions within `ROOM`, one at least; one board for all if
    `together`."""
    spread = (spread or measure_spread(lm)).checked(lm)
    refuse_unlike(prompts, answers)
    if not prompts:
        raise UserError("there are no prompts to score: give at least one")
    each = (
        len(prompts)
        if together
        else max(1, ROOM // (32 * lm.n_layers * (len(lm.unembedding) + lm.n_neurons)))
    )
    for first in range(0, len(prompts), each):
        some, wanted = prompts[first : first + each], answers[first : first + each]
        encoded, found = readings(lm, some, wanted, tokens=tokens, position=position)
        columns = zip(*((r.row, r.position, r.token, r.source) for r in found), strict=True)
        at = _Readings(*(torch.tensor(column, device=lm.device) for column in columns))
        if together:
            at = replace(at, prompt=torch.zeros_like(at.prompt))
        yield _Board(lm, spread, trace(lm, encoded), at, 1 if together else len(some))
