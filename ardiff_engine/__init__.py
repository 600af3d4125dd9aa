# SPDX-License-Identifier: Apache-2.0
"""Kernels and inference engine for asynchronous, autoregressive video diffusion.

Names are imported when they are first used, so that `import ardiff_engine` and `ardiff --help` do not wait
for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ardiff_engine.errors import ArdiffError
from ardiff_engine.lazy import lazily
from ardiff_engine.version import __version__

if TYPE_CHECKING:
    from ardiff_engine import (
        codec,
        conditions,
        diffusion,
        media,
        memory,
        models,
        noise,
        ops,
        plan,
        speculation,
        systems,
        weights,
    )
    from ardiff_engine.diffusion import Branch, FlowSchedule, NoiseSchedule, Past, solvers
    from ardiff_engine.engine import Engine, Request, Stream
    from ardiff_engine.media import export_video, read_video
    from ardiff_engine.pipeline import Pipeline

_HOME = {
    "Branch": "ardiff_engine.diffusion",
    "Engine": "ardiff_engine.engine",
    "FlowSchedule": "ardiff_engine.diffusion",
    "NoiseSchedule": "ardiff_engine.diffusion",
    "Past": "ardiff_engine.diffusion",
    "Pipeline": "ardiff_engine.pipeline",
    "Request": "ardiff_engine.engine",
    "Stream": "ardiff_engine.engine",
    "export_video": "ardiff_engine.media",
    "read_video": "ardiff_engine.media",
    "solvers": "ardiff_engine.diffusion",
}
_MODULES = (
    "codec",
    "conditions",
    "diffusion",
    "media",
    "memory",
    "models",
    "noise",
    "ops",
    "plan",
    "speculation",
    "systems",
    "weights",
)

__all__ = [
    "ArdiffError",
    "Branch",
    "Engine",
    "FlowSchedule",
    "NoiseSchedule",
    "Past",
    "Pipeline",
    "Request",
    "Stream",
    "__version__",
    "codec",
    "conditions",
    "diffusion",
    "export_video",
    "media",
    "memory",
    "models",
    "noise",
    "ops",
    "plan",
    "read_video",
    "solvers",
    "speculation",
    "systems",
    "weights",
]


__getattr__ = lazily(__name__, {name: f"ardiff_engine.{name}" for name in _MODULES} | _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
