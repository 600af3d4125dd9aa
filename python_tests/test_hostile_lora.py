# SPDX-License-Identifier: Apache-2.0
"""LoRA files whose parts do not go together are refused before anything is multiplied or changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ardiff_engine.errors import CheckpointError
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.weights.lora import load_lora

CONFIG = WanConfig(
    width=24, depth=1, heads=2, mlp_width=16, channels=4, out_channels=4, text_dim=8, text_tokens=4
)
FRONT = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    "parts",
    [
        {"lora_A.weight": torch.ones(1, 60_000), "lora_B.weight": torch.ones(60_000, 1)},  # 14 GB multiplied
        {"lora_A.weight": torch.ones(2, 24), "lora_B.weight": torch.ones(24, 3)},
        {"lora_A.weight": torch.ones(2), "lora_B.weight": torch.ones(24, 2)},
        {"lora_A.weight": torch.tensor(1.0), "lora_B.weight": torch.tensor(1.0)},
        {"lora_A.weight": torch.ones(2, 24), "lora_B.weight": torch.ones(24, 2), "alpha": torch.ones(3)},
        {"lora_A.weight": torch.ones(2, 24), "lora_B.weight": torch.ones(24, 2), "diff": torch.ones(5)},
        {"diff": torch.ones(24, 1, 24)},
        {"diff_b": torch.tensor(1.0)},
        {"alpha": torch.tensor(1.0)},
    ],
)
def test_parts_that_do_not_go_together(tmp_path: Path, parts: dict[str, torch.Tensor]) -> None:
    save_file({f"{FRONT}.{name}": value for name, value in parts.items()}, tmp_path / "lora.safetensors")
    model = WanTransformer(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="lora.safetensors"):
        load_lora(model, tmp_path / "lora.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
