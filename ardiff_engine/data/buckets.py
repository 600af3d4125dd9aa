# SPDX-License-Identifier: Apache-2.0
"""Videos of several shapes in one data set: each belongs to the bucket that fits it, and all clips of a step
come from one bucket, so that they have one shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of its clips: height and width of a frame in pixels, and frames."""

    height: int
    width: int
    frames: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def fitting(buckets: Sequence[Bucket], height: int, width: int, frames: int) -> int | None:
    """The bucket of a video: of those that it is long enough for the one whose shape crops the least; of
    equal ones the one that enlarges the least, then the longest, then the largest. None: it is too short."""

    def loss(number: int) -> tuple[float, float, int, int]:
        own = buckets[number]
        cropped = abs(math.log(own.width * height / (own.height * width)))
        enlarged = max(0.0, math.log(max(own.height / height, own.width / width)))
        # Rounded, so that shapes like 48 x 64 and 96 x 128 crop alike.
        return round(cropped, 9), round(enlarged, 9), -own.frames, -own.height * own.width

    return min((n for n, own in enumerate(buckets) if own.frames <= frames), key=loss, default=None)


def check_sizes(buckets: Sequence[Bucket], rows: int, columns: int) -> None:
    """ConfigError: pictures that these numbers of pixels do not divide."""
    for bucket in buckets:
        if bucket.height % rows or bucket.width % columns:
            raise ConfigError(
                f"data.buckets: got {bucket.height} x {bucket.width} pixels, expected a multiple of {rows} x "
                f"a multiple of {columns}, as latents and patches have."
            )


@runtime_checkable
class Bucketed(Protocol):
    """A source whose samples have several shapes."""

    def bucket(self, sample: int) -> int: ...


def alike(source: object, samples: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The samples in batches of at most `size` of one shape each, in order within a shape."""
    shape: Callable[[int], Hashable] = source.bucket if isinstance(source, Bucketed) else lambda sample: 0
    batches: dict[Hashable, list[int]] = {}
    for sample in samples:
        batch = batches.setdefault(shape(sample), [])
        batch.append(sample)
        if len(batch) == size:
            yield batches.pop(shape(sample))
    yield from batches.values()
