# SPDX-License-Identifier: Apache-2.0
"""Checks of tensor arguments. Each raises `TensorError`: what was given, what was expected, how to fix it.

They look at metadata only (no reads of tensor values, no device syncs), except `finite`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from ardiff_engine.errors import TensorError, explain

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(name: str, value: object) -> torch.Tensor:
    """`value` as a dense tensor: one, or anything with `__dlpack__` (NumPy and CuPy arrays; no copy)."""
    if isinstance(value, torch.Tensor):
        if torch.compiler.is_compiling():
            return value
        _plain(name, value)
        # Memory that holds the negative of the values, or none: kernels read memory.
        return value.resolve_neg().clone() if value.is_neg() or value._is_zerotensor() else value
    if hasattr(value, "__dlpack__"):
        try:
            shared = torch.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TensorError(
                explain(
                    name,
                    got=f"an array that cannot be exported ({error})",
                    expected="a writable array of a dtype that torch has",
                    fix="Pass a copy of it.",
                )
            ) from error
        return _aligned(name, shared)
    raise TensorError(
        explain(
            name,
            got=type(value).__name__,
            expected="a torch tensor or an array with __dlpack__",
            fix="Wrap it with torch.as_tensor().",
        )
    )


def indices(name: str, value: object) -> torch.Tensor:
    """`tensor`, where int32 becomes int64."""
    given = tensor(name, value)
    return given.to(torch.int64) if given.dtype == torch.int32 else given


def _plain(name: str, value: torch.Tensor) -> None:
    """Refuses what has no memory with its values in it, and derivatives that would be lost."""
    if value.layout != torch.strided or value.is_nested:
        raise TensorError(f"{name} is a {value.layout} or nested tensor, but must be dense; use .to_dense().")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise TensorError(
            f"{name} was given inside of a transform of torch.func (vmap, grad), where kernels cannot run; "
            "batch by hand, and differentiate with torch.autograd."
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise TensorError(f"{name} carries a forward-mode tangent, which would be lost; use torch.autograd.")
    if torch._C._len_torch_dispatch_stack() and type(value) is torch.Tensor:
        probe = torch.empty(0, dtype=torch.float32, device="cpu")
        if type(probe) is not torch.Tensor:
            kind = type(probe).__name__
            raise TensorError(f"{name} has values, but a mode makes tensors of type {kind}; leave that mode.")


def optional(name: str, value: object) -> torch.Tensor | None:
    """`tensor`, where None stays None."""
    return None if value is None else tensor(name, value)


def writable(name: str, value: object) -> torch.Tensor:
    """`tensor` for an argument that is written: it shares the memory of `value`, or TensorError."""
    if isinstance(value, torch.Tensor) or not hasattr(value, "__dlpack__"):
        given = tensor(name, value)
        if isinstance(value, torch.Tensor) and given is not value:
            raise _not_shared(name, "it is a negated or zero view")
        return given
    try:
        shared = torch.from_dlpack(value, copy=False)
        frozen = getattr(getattr(value, "flags", None), "writeable", True) is False
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _not_shared(name, str(error)) from error
    if frozen:
        raise _not_shared(name, "it is read-only")
    return _aligned(name, shared)


def _aligned(name: str, shared: torch.Tensor) -> torch.Tensor:
    """Memory of other libraries may start anywhere; a GPU stops for good at a value that lies across two."""
    beyond = shared.data_ptr() % shared.element_size()
    if beyond:
        raise TensorError(
            explain(
                f"address of {name}",
                got=f"{beyond} bytes beyond a multiple of {shared.element_size()}",
                expected=f"one that is aligned to {str(shared.dtype).removeprefix('torch.')} values",
                fix="Pass a copy of it.",
            )
        )
    return shared


def _not_shared(name: str, why: str) -> TensorError:
    return TensorError(
        explain(
            f"{name} is written in place",
            got=f"an array whose memory cannot be shared ({why})",
            expected="a torch tensor or a writable array with __dlpack__",
            fix="Pass a torch tensor.",
        )
    )


def shape(name: str, value: torch.Tensor, expected: Sequence[int | str]) -> None:
    """Names in `expected` match any size: `shape("q", q, ("T", heads, "d"))`."""
    sizes = value.shape
    if len(sizes) == len(expected):
        for size, want in zip(sizes, expected, strict=True):
            if size != want and not isinstance(want, str):
                break
        else:
            return
    raise TensorError(
        explain(
            f"shape of {name}",
            got=list(sizes),
            expected=f"[{', '.join(map(str, expected))}]",
            fix="Reshape the argument or check its partners' sizes.",
        )
    )


def dtype(name: str, value: torch.Tensor, *expected: torch.dtype) -> None:
    if value.dtype not in expected:
        names = " or ".join(str(d).removeprefix("torch.") for d in expected)
        raise TensorError(
            explain(
                f"dtype of {name}",
                got=str(value.dtype).removeprefix("torch."),
                expected=names,
                fix=f"Convert it with .to(torch.{str(expected[0]).removeprefix('torch.')}).",
            )
        )


def floating(name: str, value: torch.Tensor) -> None:
    dtype(name, value, *FLOATS)


def same(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Same dtype and device as another argument."""
    if value.dtype != other.dtype or value.device != other.device:
        raise TensorError(
            explain(
                f"dtype and device of {name}",
                got=f"{value.dtype} on {value.device}",
                expected=f"{other.dtype} on {other.device}, as {other_name}",
                fix=f"Convert it with .to({other_name}).",
            )
        )


def device(name: str, value: torch.Tensor, expected: torch.device) -> None:
    if value.device != expected:
        raise TensorError(
            explain(
                f"device of {name}",
                got=value.device,
                expected=expected,
                fix=f"Move it with .to('{expected}').",
            )
        )


def contiguous(name: str, value: torch.Tensor) -> None:
    if not value.is_contiguous():
        raise TensorError(
            explain(
                f"strides of {name}",
                got=value.stride(),
                expected="a contiguous tensor",
                fix="Call .contiguous(), or pass the whole buffer that it is a view of.",
            )
        )


def inner_contiguous(name: str, value: torch.Tensor) -> None:
    """The last dimension is dense: rows may be strided."""
    if value.dim() and value.shape[-1] > 1 and value.stride(-1) != 1:
        raise TensorError(
            explain(f"last stride of {name}", got=value.stride(-1), expected=1, fix="Call .contiguous().")
        )


def token_rows(name: str, value: torch.Tensor, width: str) -> tuple[int, int]:
    """One row of `width` columns per token, floating point; both sizes."""
    if value.dim() != 2 or not value.is_floating_point():
        raise TensorError(
            explain(
                name,
                got=f"{value.dtype} {list(value.shape)}",
                expected=f"floating point [T, {width}]",
                fix="Flatten the tokens.",
            )
        )
    tokens, columns = value.shape
    return tokens, columns


def finite(name: str, value: torch.Tensor) -> None:
    """Reads the values: not for hot paths."""
    if not bool(torch.isfinite(value).all()):
        raise TensorError(
            explain(
                f"values of {name}", got="NaN or infinity", expected="finite numbers", fix="Check its source."
            )
        )
