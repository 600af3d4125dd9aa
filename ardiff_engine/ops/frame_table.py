# SPDX-License-Identifier: Apache-2.0
"""`FrameTable`: which query tokens see which rows of which pages. Built on the host, once per batch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from operator import index

import numpy as np
import torch

from ardiff_engine.device import usable_device
from ardiff_engine.errors import ConfigError, PageTableError, explain
from ardiff_engine.ops.attention_work import host_copies, keep_host_copies


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Page lists for `frame_attention`.

    Query tokens are packed; a *query frame* is a run of them that sees the same pages; a *group* is a run of
    query frames that share one page list, of which frame f sees the first `seen[f]` entries.

    Attributes:
        frame_ptr: int32 [frames + 1], query token offsets of the query frames.
        group_ptr: int32 [groups + 1], query frame offsets of the groups.
        page_ptr: int32 [groups + 1], entry offsets of the groups.
        pages: int32 [entries], page ids; a page may occur in any number of lists.
        valid: int32 [entries], rows of the page that exist; rows beyond are never read.
        seen: int32 [frames].
        bias: float32 [entries] or None, added to the logits of an entry (log-bias).

    Raises:
        PageTableError: negative page ids or row counts; `seen` beyond the page list; sizes that do not match.
        ConfigError: offsets that do not start at 0 or decrease, or tensors of another dtype or device.
    """

    frame_ptr: torch.Tensor
    group_ptr: torch.Tensor
    page_ptr: torch.Tensor
    pages: torch.Tensor
    valid: torch.Tensor
    seen: torch.Tensor
    bias: torch.Tensor | None = None
    num_tokens: int = field(init=False)
    num_groups: int = field(init=False)
    pool_pages: int = field(init=False)
    """Pages that the pool must have at least: the largest page id + 1."""
    page_rows: int = field(init=False)
    """Rows that a page must have at least: the largest `valid`."""

    def __post_init__(self) -> None:
        _check_tensors(self)
        frame_ptr, group_ptr, page_ptr = (_host(t) for t in (self.frame_ptr, self.group_ptr, self.page_ptr))
        pages, valid, seen = (_host(t) for t in (self.pages, self.valid, self.seen))
        _check_offsets("frame_ptr", frame_ptr, None)
        _check_offsets("group_ptr", group_ptr, len(frame_ptr) - 1)
        _check_offsets("page_ptr", page_ptr, len(pages))
        _equal("length of page_ptr", len(page_ptr), len(group_ptr))
        _equal("length of valid", len(valid), len(pages))
        _equal("length of seen", len(seen), len(frame_ptr) - 1)
        if self.bias is not None:
            _equal("length of bias", len(self.bias), len(pages))
            if np.isnan(_host(self.bias)).any():
                raise PageTableError(
                    explain(
                        "bias",
                        got="NaN",
                        expected="numbers or -inf",
                        fix="Check where the log-bias comes from.",
                    )
                )
        _not_negative("page ids", pages, "Free slots must not be listed.")
        _not_negative("valid", valid, "Count the rows that are written.")
        _not_negative("seen", seen, "Use 0 for an empty view.")
        listed = np.repeat(np.diff(page_ptr), np.diff(group_ptr))
        over = np.flatnonzero(seen > listed)
        if over.size:
            at = int(over[0])
            raise PageTableError(
                explain(
                    f"seen of query frame {at}",
                    got=int(seen[at]),
                    expected=f"at most {int(listed[at])}, the number of pages in its group's list",
                    fix="Append the missing pages or lower `seen`.",
                )
            )
        object.__setattr__(self, "num_tokens", int(frame_ptr[-1]))
        object.__setattr__(self, "num_groups", len(group_ptr) - 1)
        object.__setattr__(self, "pool_pages", int(pages.max(initial=-1)) + 1)
        object.__setattr__(self, "page_rows", int(valid.max(initial=0)))
        if self.device.type != "cpu":
            copies = (frame_ptr, group_ptr, page_ptr, valid, seen)
            keep_host_copies(self.offsets, tuple(map(torch.from_numpy, copies)))

    @classmethod
    def build(
        cls,
        query_tokens: Sequence[int | Sequence[int]],
        pages: Sequence[Sequence[int]],
        valid: Sequence[Sequence[int]],
        seen: Sequence[Sequence[int] | int | None] | None = None,
        bias: Sequence[Sequence[float]] | None = None,
        device: str | torch.device = "cpu",
    ) -> FrameTable:
        """A table from one list entry per group.

        Args:
            query_tokens: tokens of each query frame of the group: a list, or an int for a single frame.
            pages: page ids in the order in which they are seen.
            valid: rows that exist in each of these pages.
            seen: how many leading pages each query frame sees: a list, an int for a single frame; None: all.
            bias: log-bias of each of these pages; None: none.

        Integers are those of Python, NumPy or torch; anything else (3.0, a missing list) is a PageTableError.
        """
        groups = _length("query_tokens", query_tokens)
        optional = {name: lists for name, lists in (("seen", seen), ("bias", bias)) if lists is not None}
        for name, lists in {"pages": pages, "valid": valid, **optional}.items():
            _equal(f"number of groups in {name}", _length(name, lists), groups)
        frames = [_one_or_more("query_tokens", tokens) for tokens in query_tokens]
        listed = [_length("pages", ids) for ids in pages]
        views: list[Sequence[int]] = []
        for g, tokens in enumerate(frames):
            limit = None if seen is None else seen[g]
            views.append([listed[g]] * len(tokens) if limit is None else _one_or_more("seen", limit))
            _equal(f"length of seen[{g}]", len(views[g]), len(tokens))
            _equal(f"length of valid[{g}]", _length("valid", valid[g]), listed[g])
            if bias is not None:
                _equal(f"length of bias[{g}]", _length("bias", bias[g]), listed[g])
        flat_tokens = _integers("query_tokens", frames)
        if min(flat_tokens, default=0) < 0:
            raise PageTableError(
                explain(
                    "query_tokens", got=min(flat_tokens), expected="0 or more", fix="Count tokens per frame."
                )
            )
        table = cls.from_flat(
            flat_tokens,
            [len(tokens) for tokens in frames],
            listed,
            _integers("pages", pages),
            _integers("valid", valid),
            _integers("seen", views),
            None if bias is None else _floats("bias", bias),
        )
        return table.to(device)

    @classmethod
    def from_flat(
        cls,
        query_tokens: Sequence[int] | np.ndarray,
        frames: Sequence[int] | np.ndarray,
        entries: Sequence[int] | np.ndarray,
        pages: Sequence[int] | np.ndarray,
        valid: Sequence[int] | np.ndarray,
        seen: Sequence[int] | np.ndarray,
        bias: torch.Tensor | None = None,
    ) -> FrameTable:
        """`build` for who has flat lists or arrays of 32-bit integers already, as a scheduler has.

        query_tokens, seen: of all query frames. frames, entries: query frames and pages of each group. pages,
        valid: of all entries. Raises what the constructor does, which checks sizes and offsets.
        """
        return cls(
            frame_ptr=_offsets("query_tokens", query_tokens),
            group_ptr=_offsets("frames", frames),
            page_ptr=_offsets("entries", entries),
            pages=_int32("pages", pages),
            valid=_int32("valid", valid),
            seen=_int32("seen", seen),
            bias=bias,
        )

    def over(self, tensors: Mapping[str, torch.Tensor]) -> FrameTable:
        """This table with its tensors in other memory, which must hold the same values. Not validated.

        CUDA graphs put the values of other tables there, with as many tokens, groups and entries.
        """
        other = copy.copy(self)
        for name, value in tensors.items():
            object.__setattr__(other, name, value)
        return other

    def __copy__(self) -> FrameTable:
        # Not through pickling, as copy.copy would: a scheduler makes several tables per tick.
        other = object.__new__(FrameTable)
        for name in self.__slots__:
            object.__setattr__(other, name, getattr(self, name))
        return other

    @property
    def offsets(self) -> tuple[torch.Tensor, ...]:
        """What the schedule of frame_attention is made from."""
        return self.frame_ptr, self.group_ptr, self.page_ptr, self.valid, self.seen

    @property
    def device(self) -> torch.device:
        return self.pages.device

    def with_pages(self, pages: torch.Tensor) -> FrameTable:
        """The same views of other pages: int32 like those, on the CPU. Only they are validated."""
        dense = isinstance(pages, torch.Tensor) and pages.layout == torch.strided and not pages.is_meta
        alike = dense and pages.shape == self.pages.shape and pages.dtype == torch.int32
        if not alike or pages.device.type != "cpu":
            raise ConfigError(
                explain(
                    "FrameTable.with_pages",
                    got=_describe(pages),
                    expected=f"an int32 tensor {list(self.pages.shape)} on the CPU",
                    fix="Give one page id for each entry, and move the table afterwards.",
                )
            )
        ids = pages.numpy()
        # Read as unsigned, a negative id is the largest: one pass finds both.
        highest = int(ids.view(np.uint32).max(initial=0)) if ids.size else -1
        if highest >= 2**31:
            _not_negative("page ids", ids, "Free slots must not be listed.")
        other = copy.copy(self)
        object.__setattr__(other, "pages", pages.contiguous())
        object.__setattr__(other, "pool_pages", highest + 1)
        return other

    def to(self, device: str | torch.device) -> FrameTable:
        """The same table on another device. Not validated again, and its offsets stay in host memory too."""
        if not isinstance(device, torch.device):
            meta = isinstance(device, str) and device == "meta"
            device = torch.device("meta") if meta else usable_device(device)
        if device == self.device:
            return self
        host = self.offsets if self.device.type == "cpu" else host_copies(self.seen)
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = self.over(
            {name: value.to(device) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        )
        if host is not None and moved.device.type != "cpu":
            keep_host_copies(moved.offsets, host)
        return moved


def _one_or_more(name: str, given: int | Sequence[int]) -> Sequence[int]:
    """A sequence as it is; an integer as a list of it."""
    if isinstance(given, list | tuple):
        return given
    try:
        return [index(given)]  # type: ignore[arg-type]
    except TypeError:
        _length(name, given)
        return given  # type: ignore[return-value]


def _length(name: str, row: object) -> int:
    if isinstance(row, str | bytes | Mapping) or not hasattr(row, "__getitem__"):
        raise _not_listed(name, type(row).__name__, "a list per group")
    try:
        return len(row)  # type: ignore[arg-type]
    except TypeError as error:
        raise _not_listed(name, row, "a list per group") from error


def _integers(name: str, lists: Iterable[Iterable[int]]) -> list[int]:
    """All of the lists in one; the 32-bit range is checked."""
    try:
        values = list(map(index, chain.from_iterable(lists)))
    except TypeError as error:
        raise _not_listed(name, error, "integers") from error
    if values and not -(2**31) <= min(values) <= max(values) < 2**31:
        raise PageTableError(
            explain(
                f"{name} in a table",
                got=max(values, key=abs),
                expected="a 32-bit integer",
                fix="Check the page ids.",
            )
        )
    return values


def _flat(name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    """Integers of 32 bits in one dimension; no bool, no fraction."""
    try:
        array = np.asarray(values)
        nothing = array.size == 0 and isinstance(values, list)
        good = array.ndim == 1 and (nothing or array.dtype.kind in "iu")
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a ragged list, a tensor of bfloat16
        good = False
    if not good or (array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31):
        raise PageTableError(
            f"{name} of FrameTable.from_flat must be flat and hold integers of 32 bits, got {values!r:.80}"
        )
    return array


def _int32(name: str, values: Sequence[int] | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(_flat(name, values), dtype=np.int32))


def _floats(name: str, lists: Iterable[Iterable[float]]) -> torch.Tensor:
    try:
        return torch.tensor(list(map(float, chain.from_iterable(lists))), dtype=torch.float32, device="cpu")
    except (TypeError, ValueError) as error:
        raise _not_listed(name, error, "numbers") from error


def _not_listed(name: str, got: object, expected: str) -> PageTableError:
    return PageTableError(
        explain(f"{name} of FrameTable.build", got=got, expected=expected, fix="See its arguments.")
    )


def _offsets(name: str, sizes: Sequence[int] | np.ndarray) -> torch.Tensor:
    ends = np.concatenate([[0], np.cumsum(_flat(name, sizes), dtype=np.int64)])
    if ends[-1] >= 2**31:
        raise PageTableError(
            explain(
                "tokens or pages in a table",
                got=int(ends[-1]),
                expected="fewer than 2^31",
                fix="Split the batch.",
            )
        )
    return torch.from_numpy(ends.astype(np.int32))


def _host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _check_tensors(table: FrameTable) -> None:
    for item in fields(table):
        value = getattr(table, item.name) if item.init else None
        if not item.init or (value is None and item.name == "bias"):
            continue
        want = torch.float32 if item.name == "bias" else torch.int32
        if (
            not isinstance(value, torch.Tensor)
            or value.dtype != want
            or value.dim() != 1
            or not value.is_contiguous()
        ):
            raise ConfigError(
                explain(
                    f"FrameTable.{item.name}",
                    got=_describe(value),
                    expected=f"a contiguous 1-D {want} tensor",
                    fix="Use FrameTable.build.",
                )
            )
        if value.device != table.frame_ptr.device:  # the first field, and checked before the others
            raise ConfigError(
                explain(
                    f"device of FrameTable.{item.name}",
                    got=value.device,
                    expected=table.frame_ptr.device,
                    fix="Put all of a table on one device with FrameTable.to.",
                )
            )


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _check_offsets(name: str, offsets: np.ndarray, end: int | None) -> None:
    good = len(offsets) > 0 and offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
    if not good or (end is not None and offsets[-1] != end):
        last = "" if end is None else f" to {end}"
        raise ConfigError(
            explain(
                name,
                got=offsets[:8].tolist(),
                expected=f"offsets that rise from 0{last}",
                fix="Use FrameTable.build.",
            )
        )


def _equal(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise PageTableError(explain(what, got=got, expected=expected, fix="Give one entry for each."))


def _not_negative(what: str, values: np.ndarray, fix: str) -> None:
    if values.size and values.min() < 0:
        raise PageTableError(explain(what, got=int(values.min()), expected="0 or more", fix=fix))
