"""Bytes a GPU needs for training and for generating: the formulae of docs/estimating.md, one function each.

T tokens of a row, R rows at once, s bytes of a value (weights' dtype); d, a, f, h, V, L as in shape.Shape.

Departures: 1. the CUDA context, fragmentation and communication buffers are one lump, RESERVE. 2. a trained vision tower's
activations are not modelled (its weights, gradients and optimiser are); ``phases`` says so. 3. LoRA is taken to lie on
every linear layer of the language model, as it does by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from visrl.estimate.shape import Shape

FLOAT = 4  # norms and losses are computed in float32
TILE_PLACES, TILE_WORDS = 4096, 32768  # of logits at once, in TRL's SFT loss
RESERVE = 1.5 * 2**30  # of a GPU: context, libraries' workspaces, fragmentation
SHARDED = {
    "ddp": (),
    "zero2": ("gradients", "optimiser"),
    "zero3": ("weights", "gradients", "optimiser"),
    "fsdp": ("weights", "gradients", "optimiser"),
}
"""What each way of training on many GPUs spreads over them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what holds them, at the peak. host: pixels of the pictures at hand, in the machine's memory, not the GPU's."""

    weights: float = 0
    gradients: float = 0
    optimiser: float = 0
    activations: float = 0
    logits: float = 0
    cache: float = 0
    features: float = 0
    host: float = 0

    @property
    def total(self) -> float:
        """What the GPU holds."""
        return sum(getattr(self, name) for name in self.__slots__ if name != "host")

    def sharded(self, how: str, gpus: int) -> Memory:
        """Of one GPU of ``gpus``."""
        return Memory(**{name: getattr(self, name) / (gpus if name in SHARDED[how] else 1) for name in self.__slots__})


def block_bytes(shape: Shape, tokens: int, size: int) -> float:
    """What one layer keeps per token for its backward pass. tokens: T, for attention scores that are kept (Gemma2).

    norm: input and normalised value (float32 where s < 4), and the scaled one that linear layers read; attention: q, k, v
    (repeated to all heads), output and log-sum; gated MLP: gate, its activation, up, their product.
    """
    d, a, f, h, s = shape.hidden, shape.width, shape.inner, shape.heads, size
    if shape.adapters and s < FLOAT:
        return _adapted_block_bytes(shape, tokens, size)
    norms: float = shape.norms * (FLOAT * d + s * d + FLOAT) + 2 * s * d
    if shape.qk_norm:
        norms += (FLOAT + s) * (a + shape.kv_heads * shape.head_dim)
    if shape.soft_scores:  # computed in the open: scores after tanh and after softmax, and the input of the projection
        attention: float = 3 * s * a + 2 * s * h * tokens + s * a
    else:
        attention = 4 * s * a + FLOAT * h
    return norms + attention + 4 * s * f


def _adapted_block_bytes(shape: Shape, tokens: int, size: int) -> float:
    """The same of a frozen layer in half precision with LoRA on its linear layers: each adapter keeps its input in float32, and
    the norms, whose scale is not trained, no output.
    """
    d, a, f, h, s = shape.hidden, shape.width, shape.inner, shape.heads, size
    inputs = FLOAT * (5 * d + a + f)  # of q, k, v, gate and up; of the projection behind attention; of down
    norms = shape.norms * FLOAT * (d + 1) + (FLOAT * (a + shape.kv_heads * shape.head_dim) if shape.qk_norm else 0)
    scores = 2 * s * h * tokens if shape.soft_scores else FLOAT * h
    return inputs + norms + 4 * s * a + 3 * s * f + scores


def _adapter_moment(shape: Shape, size: int) -> float:
    """Of a token, beside what is kept: up's adapter at work in float32, its output and the scaled one, where down has kept
    nothing yet; the layer's residual and normalised value, and the norm's float32.
    """
    if not shape.adapters or size >= FLOAT:
        return 0.0
    return FLOAT * shape.inner + (FLOAT + 2 * size) * shape.hidden


def fused_loss_bytes(shape: Shape, places: int, size: int) -> float:
    """SFT's loss: TRL projects the trained ``places`` in tiles of places x words, which a Triton kernel folds where they are."""
    return size * min(places, TILE_PLACES) * TILE_WORDS + (FLOAT + size) * places * shape.hidden


def activation_bytes(shape: Shape, rows: int, tokens: int, size: int, *, checkpointing: bool) -> float:
    """R rows of T tokens through all layers: kept for the backward pass. The block mask [R, 1, T, T] is among it."""
    block = block_bytes(shape, tokens, size)
    layers = shape.layers * size * shape.hidden + block if checkpointing else shape.layers * block
    last = (FLOAT + size) * shape.hidden + FLOAT  # the norm before the head
    mask = 0 if shape.soft_scores else size * tokens * rows * tokens
    return rows * tokens * (layers + last + _adapter_moment(shape, size)) + mask


def crossing_bytes(shape: Shape, pictures: int, size: int, *, checkpointing: bool) -> float:
    """What the layers that attend to pictures across keep for so many pictures of all rows: the states; of a layer keys and
    values repeated to all heads, the normalised keys in float32, and with LoRA the inputs of its k and v in float32; then the
    gradients of one layer's repeated keys and values. 0 for models without such layers.
    """
    states, d, a = pictures * shape.states, shape.hidden, shape.width
    inputs = 2 * FLOAT * d if shape.adapters and size < FLOAT else 0
    layer = inputs + 2 * size * a + FLOAT * shape.kv_heads * shape.head_dim
    layers = min(1, shape.crossing) if checkpointing else shape.crossing
    return float(states * (size * d + layers * layer + 2 * size * a))


def logit_bytes(shape: Shape, rows: int, kept: int, size: int) -> float:
    """R rows of ``kept`` projected places: the logits (in float32 too where s < 4), and three copies that the loss makes."""
    copies = 4 + (1 if shape.soft_logits else 0) + (size / FLOAT if size < FLOAT else 0)
    return copies * FLOAT * rows * kept * shape.vocab if size <= FLOAT else 5 * size * rows * kept * shape.vocab


@dataclass(frozen=True, slots=True)
class Step:
    """What goes through a model at once: ``rows`` x ``tokens``, ``kept`` places of a row projected; fused: by TRL's SFT loss.
    pictures: of all rows together, at most, where the text attends to them across.
    """

    rows: int
    tokens: int
    kept: int
    fused: bool = False
    pictures: int = 0


def training_memory(shape: Shape, step: Step, *, size: int, checkpointing: bool, accumulates: bool) -> Memory:
    """One process training with AdamW.

    Gradients and activations meet in full only where gradients accumulate over batches; else the larger of both counts.
    """
    rows, tokens, kept = step.rows, step.tokens, step.kept
    trained = FLOAT if shape.adapters else size  # PEFT keeps adapters in float32
    gradients: float = trained * shape.trained
    activations = activation_bytes(shape, rows, tokens, size, checkpointing=checkpointing)
    activations += crossing_bytes(shape, step.pictures, size, checkpointing=checkpointing)
    logits = fused_loss_bytes(shape, rows * kept, size) if step.fused else logit_bytes(shape, rows, kept, size)
    if not accumulates:
        gradients = max(0, gradients - activations - logits)
    return Memory(
        weights=size * (shape.total - shape.adapters) + FLOAT * shape.adapters,
        gradients=gradients,
        optimiser=2 * trained * shape.trained,
        activations=activations,
        logits=logits,
    )


def cache_bytes(shape: Shape, rows: int, slots: int, size: int) -> float:
    """Keys and values of R rows with so many slots."""
    return 2.0 * shape.layers * rows * slots * shape.kv_heads * shape.head_dim * size


def room(slots: int) -> int:
    """Slots that caches.PreallocatedLayer sets aside for ``slots``: an eighth more, at least 32."""
    return slots + max(32, slots // 8)


@dataclass(frozen=True, slots=True)
class Turns:
    """Tokens of conversations of two turns. first, second: mean of a turn with its reply, 0 where there is none; longest: of
    any. read: the most that one pass reads of the first turn, reread: of the second, without what a cache holds. pictures,
    values: means of a conversation's picture tokens, whose features stay for both turns, and of their pixels' values."""

    first: float
    second: float
    longest: int
    read: int
    reread: int
    pictures: float
    values: float


def generation_memory(shape: Shape, turns: Turns, *, rows: int, requests: int, size: int, keeps: bool) -> Memory:
    """Two turns of ``requests`` conversations, ``rows`` at once: the larger of the two moments.

    keeps: the caches of the first turn, of all requests, stay for the second, which copies ``rows`` of them at a time. The
    largest moment of a layer: the MLP's gate, up and product next to the residual, or attention with keys and values of the
    whole row repeated to all heads.
    """
    running = cache_bytes(shape, rows, room(turns.longest), size)
    held = cache_bytes(shape, requests, room(round(turns.first)), size) if keeps and turns.second else 0.0
    moments = [
        Memory(
            weights=float(size * shape.total),
            activations=float(size * rows * _layer(shape, fresh, turns.longest)),
            logits=float(FLOAT * rows * shape.vocab),
            cache=cache,
            features=float(size * requests * pictures * turns.pictures * max(shape.states, 1) * shape.hidden),
            host=float(FLOAT * requests * pictures * turns.values),
        )
        for fresh, cache, pictures in (
            (turns.read, max(held, running), 0.5 if turns.second else 1.0),
            (turns.reread, held + running, 1.0),
        )
    ]
    return max(moments, key=lambda moment: moment.total + moment.host)


def _layer(shape: Shape, fresh: int, longest: int) -> int:
    """Values alive for a row of ``fresh`` new tokens in one layer, without gradients."""
    attention = 4 * shape.width * fresh + 2 * shape.width * longest
    scores = 2 * shape.heads * longest * fresh if shape.soft_scores else 0
    return 2 * shape.hidden * fresh + max(3 * shape.inner * fresh, attention) + scores
