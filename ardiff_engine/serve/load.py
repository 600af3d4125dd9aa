# SPDX-License-Identifier: Apache-2.0
"""The model that the options of `ardiff serve` name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ardiff_engine.errors import ConfigError
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.files import steered_folder
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import ServedModel
from ardiff_engine.serve.served_model import served_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


PARTS = ("transformer", "vae", "text", "lora", "tile")


def load_model(options: argparse.Namespace, limits: Limits) -> ServedModel:
    """ConfigError: an option that the model does not take."""
    arguments = {"device": options.device, "dtype": DTYPES[options.dtype]}
    pipe: Pipeline | TextToVideoPipeline | SteeredPipeline
    if steered_folder(options.model) is not None:
        given = [name for name in ("system", "size", *PARTS) if getattr(options, name) is not None]
        if given or options.dtype != "float32":
            raise ConfigError(
                f"--{(given or ['dtype'])[0]}: {options.model} is a steered model. Leave it out."
            )
        pipe = SteeredPipeline.from_pretrained(options.model, device=options.device)
    elif options.system is None:
        pipe = Pipeline.from_pretrained(options.model, **arguments)
    else:
        parts = {part: getattr(options, part) for part in PARTS}
        pipe = Pipeline.from_pretrained(options.model, system=options.system, **arguments, **parts)
    size = () if options.size is None else (options.size,)
    return served_model(Path(options.model).name, pipe, limits, *size)
