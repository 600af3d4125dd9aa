# SPDX-License-Identifier: Apache-2.0
"""One call for a video, or frames as they become clean: models, codec and engine together."""

from typing import TYPE_CHECKING

from ardiff_engine.lazy import lazily

if TYPE_CHECKING:
    from ardiff_engine.pipeline.pipeline import Pipeline
    from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline

__all__ = ["Pipeline", "TextToVideoPipeline"]

__getattr__ = lazily(
    __name__,
    {
        "Pipeline": "ardiff_engine.pipeline.pipeline",
        "TextToVideoPipeline": "ardiff_engine.pipeline.text_to_video",
    },
)
