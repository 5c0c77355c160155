"""One vocabulary head, a few rows at a time: what the streamed losses of this package share.

A *chunk* of rows passes the head at once (the matmuls want many rows); a *block* of its rows passes the softmax at once
(the elementwise work wants to stay in the processor's cache). Both sizes are chosen by bytes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Logits kept at once, all heads of one call together, in bytes. On CPU 64 MiB is 240 rows of two heads of 32,000 words
# in fp32: fewer rows a chunk save memory but read each head more often (96 rows cost 11 % more time than 240).
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 32, 1024
# Of a block. On CPU for each thread, up to a limit: small enough for the caches, large enough that threads seldom wait
# for each other (with 512 KiB, on two cores that other programs used too, that waiting took longer than the work).
BLOCK_BYTES = {"cpu": 2 * 2**20, "cuda": 8 * 2**20}
MAX_BLOCK_THREADS = 2
# Words of a weight gradient made at once where its dtype is not the matmul's (autocast).
TILE_WORDS = 4096

REDUCTIONS = ("mean", "sum", "none")


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which `F.linear` would multiply `tensor` here: autocast's where it is on, else the tensor's own."""
    device = tensor.device.type
    # Autocast leaves float64 alone, and so do we.
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def statistics_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of softmax, sums and losses: fp32, or float64 where an input is float64."""
    # fp32: a bf16 softmax over 32k words loses the tail that visual words live in.
    return torch.float64 if torch.float64 in dtypes else torch.float32


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """`(start, stop)` of consecutive pieces of `range(count)` of at most `step` each; none if `count` is 0."""
    for start in range(0, count, step):
        yield start, min(start + step, count)


def choose_chunk_rows(chunk_rows: int | None, rows: int, device: torch.device, bytes_per_row: int) -> int:
    """Rows that pass the head at once: the caller's choice, else by bytes, in equal chunks.

    Args:
        chunk_rows: the caller's choice or None.
        rows: all rows of the call.
        device: where they are.
        bytes_per_row: of the logits of one row, all heads of the call together.

    Raises:
        ValueError: `chunk_rows` is given and not a positive integer.
    """
    if chunk_rows is not None:
        if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
            raise ValueError(f"chunk_rows is a positive number of rows or None (choose by memory), got {chunk_rows!r}.")
        return min(chunk_rows, max(rows, 1))
    most = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // bytes_per_row
    if device.type != "cpu":
        # A GPU's budget must not swallow the saving of a short call: an eighth of the rows, but enough to fill it.
        most = min(most, max(rows // 8, 128))
    most = min(max(most, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS)
    chunks = -(-rows // most) or 1
    # Equal chunks (no short last one), in multiples of 16 rows, which matmul kernels like.
    return min(max(-(-rows // chunks) + 15, 16) // 16 * 16, most)


def choose_block_rows(chunk: int, vocab: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of a chunk that pass the softmax at once."""
    block_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
    if device.type == "cpu":
        block_bytes *= min(torch.get_num_threads(), MAX_BLOCK_THREADS)
    return min(chunk, max(1, block_bytes // max(1, vocab * dtype.itemsize)))


class WeightGradient:
    """The gradient of one head, `[vocab, hidden]`, summed in place over chunks.

    It has the dtype of the weight: fp32 master weights under autocast sum in fp32; a bf16 weight sums in bf16, one
    rounding a chunk, because an fp32 copy of a large head (2.5 GB at 152k words of 4096) would undo the saving, and
    because its optimiser reads bf16 anyway. Inside a chunk every matmul accumulates in fp32. Measured against float64:
    0.3 % relative error in one chunk, 0.7 % in 36 chunks.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.total: Tensor | None = None

    def add(self, logits_gradient: Tensor, rows: Tensor) -> None:
        """Adds `logits_gradientᵀ @ rows`; `[chunk, vocab]` and `[chunk, hidden]`, both in the matmul's dtype."""
        is_first = self.total is None
        if self.total is None:
            self.total = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
        if self.total.dtype == rows.dtype:
            # beta=0 does not read the fresh memory, which saves filling it with zeros.
            self.total.addmm_(logits_gradient.t(), rows, beta=0.0 if is_first else 1.0)
            return
        for start, stop in ranges(len(self.total), TILE_WORDS):
            tile = logits_gradient[:, start:stop].t() @ rows
            if is_first:
                self.total[start:stop] = tile
            else:
                self.total[start:stop] += tile


def finish(gradient: WeightGradient | None) -> Tensor | None:
    """The sum, and None where none was asked for; zeros when there was no row, so that every weight stays connected."""
    if gradient is None:
        return None
    return torch.zeros_like(gradient.weight) if gradient.total is None else gradient.total


def scale_in_place(gradients: tuple[Tensor | None, ...], factor: Tensor) -> None:
    """Multiplies the gradients of a scalar loss by the scalar that the backward hands in; None stays None."""
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(factor)


class StreamedHead:
    """One head over many rows, a chunk of logits at a time, in one buffer that is allocated once.

    Args:
        rows: `[rows, hidden]`.
        weight: `[vocab, hidden]`.
        dtype: of the matmuls.
        chunk: most rows at once.
        learns_rows: make `rows_gradient`, `[rows, hidden]`.
        weight_gradient: where to add the weight's gradient (two heads may share one); None makes none.
    """

    def __init__(
        self,
        rows: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        chunk: int,
        *,
        learns_rows: bool = False,
        weight_gradient: WeightGradient | None = None,
    ) -> None:
        self.rows = rows
        self.weight = weight.to(dtype)
        self.buffer = weight.new_empty(chunk, len(weight), dtype=dtype)  # [chunk, vocab]
        self.rows_gradient = torch.empty_like(rows, memory_format=torch.contiguous_format) if learns_rows else None
        self.weight_gradient = weight_gradient

    @property
    def learns(self) -> bool:
        """Whether any gradient is asked of this head."""
        return self.rows_gradient is not None or self.weight_gradient is not None

    def logits(self, start: int, stop: int) -> Tensor:
        """`[stop - start, vocab]`, in the buffer: the next call overwrites it."""
        rows = self.rows[start:stop].to(self.weight.dtype)
        return torch.mm(rows, self.weight.t(), out=self.buffer[: stop - start])

    def learn(self, start: int, stop: int, row_scale: Tensor | None = None) -> None:
        """Turns the buffer, which now holds the loss' gradient by these rows' logits, into the gradients asked for.

        Args:
            start: first row.
            stop: one past the last row.
            row_scale: `[rows]`, a factor for each row's loss; None is 1.
        """
        logits_gradient = self.buffer[: stop - start]
        scale = None if row_scale is None else row_scale[start:stop, None]
        if self.rows_gradient is not None:
            into = self.rows_gradient[start:stop]
            if into.dtype == self.weight.dtype:
                torch.mm(logits_gradient, self.weight, out=into)
            else:
                into.copy_(logits_gradient @ self.weight)
            if scale is not None:
                into.mul_(scale)
        if self.weight_gradient is not None:
            rows = self.rows[start:stop]
            self.weight_gradient.add(logits_gradient, (rows if scale is None else rows * scale).to(self.weight.dtype))


def check_rows(name: str, rows: Tensor, weight_name: str, weight: Tensor) -> None:
    """Refuses rows and a weight that cannot be multiplied.

    Raises:
        ValueError: not two matrices, no words, other widths, other devices or dtypes that `F.linear` refuses as well.
    """
    for label, tensor, shape in ((name, rows, "[rows, hidden]"), (weight_name, weight, "[vocab, hidden]")):
        if tensor.dim() != 2:
            raise ValueError(
                f"{label} is a matrix {shape}, got shape {tuple(tensor.shape)}: "
                "select the scored positions first, which flattens batch and sequence into rows."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{label} holds floating-point numbers, got {tensor.dtype}.")
    if len(weight) == 0:
        raise ValueError(
            f"{weight_name} has no rows, so there is no vocabulary. Under ZeRO-3 a weight is empty outside the forward "
            "of the module that owns it: call this inside that forward."
        )
    if rows.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name} has width {rows.shape[1]} and {weight_name} has width {weight.shape[1]}: a head reads rows of its "
            "own width. Are the two heads exchanged?"
        )
    if rows.device != weight.device:
        raise ValueError(f"{name} is on {rows.device} and {weight_name} on {weight.device}: move one to the other.")
    if matmul_dtype(rows) != matmul_dtype(weight):
        raise ValueError(
            f"{name} is {rows.dtype} and {weight_name} is {weight.dtype}: cast one to the other or turn autocast on."
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a word that is none of `choices`.

    Raises:
        ValueError: with the words there are.
    """
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, got {value!r}.")
