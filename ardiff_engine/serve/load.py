# SPDX-License-Identifier: Apache-2.0
"""The model that the options of `ardiff serve` name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.served_model import ServedModel, served_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(options: argparse.Namespace, limits: Limits) -> ServedModel:
    arguments = {"device": options.device, "dtype": DTYPES[options.dtype]}
    pipe: Pipeline | TextToVideoPipeline
    if options.system is None:
        pipe = Pipeline.from_pretrained(options.model, **arguments)
    else:
        parts = {part: getattr(options, part) for part in ("transformer", "vae", "text", "lora", "tile")}
        pipe = Pipeline.from_pretrained(options.model, system=options.system, **arguments, **parts)
    size = () if options.size is None else (options.size,)
    return served_model(Path(options.model).name, pipe, limits, *size)
