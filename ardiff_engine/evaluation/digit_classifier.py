# SPDX-License-Identifier: Apache-2.0
"""Reads the digit in a frame: a small convolutional network, trained on frames with scans of the training
split."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.parsing import check_regular, parsing

BATCH = 64
STEPS = 2500
LEARNING_RATE = 2e-3
MAX_BLUR = 0.5
NOISE = 0.05
HELD_OUT_FRAMES = 2048
SETTINGS = "settings"


class DigitNetwork(nn.Module):
    """Grey frames [N, 1, H, W] in [0, 1] -> logits [N, 10]."""

    def __init__(self, canvas: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(),
        )  # fmt: skip
        side = -(-canvas // 8)
        self.head = nn.Sequential(nn.Linear(64 * side * side, 128), nn.GELU(), nn.Linear(128, 10))

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.body(frames))


@dataclass(frozen=True, slots=True)
class DigitClassifier:
    """network, and its accuracy on frames with scans that it was not trained on."""

    network: DigitNetwork
    held_out_accuracy: float

    @torch.no_grad()
    def probabilities(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """uint8 [..., H, W, 3] -> [..., 10]."""
        grey = torch.from_numpy(np.ascontiguousarray(frames[..., 0])).float() / 255
        logits = self.network(grey.reshape(-1, 1, *grey.shape[-2:]))
        return logits.double().softmax(dim=-1).reshape(*frames.shape[:-3], 10).numpy()


def train_classifier(
    digits: MovingDigits, *, steps: int = STEPS, seed: int = 0, progress: bool = True
) -> DigitClassifier:
    """Trained on randomly blurred and slightly noisy frames, so that soft pictures do not count as
    unreadable."""
    torch.manual_seed(seed)
    network = DigitNetwork(digits.canvas)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    training = replace(digits, split="train", seed=seed + 1, digits=1)
    for step in tqdm(range(steps), desc="training the classifier", disable=not progress, mininterval=1.0):
        frames, labels = _frames(training, range(step * BATCH, (step + 1) * BATCH))
        blurred = F.avg_pool2d(frames, 3, stride=1, padding=1)
        mix = MAX_BLUR * torch.rand(BATCH, 1, 1, 1)
        frames = (1 - mix) * frames + mix * blurred + NOISE * torch.randn_like(frames)
        loss = F.cross_entropy(network(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return DigitClassifier(network.eval(), accuracy(network, digits))


@torch.no_grad()
def accuracy(network: DigitNetwork, digits: MovingDigits) -> float:
    """Share of correct answers on frames with held-out scans."""
    frames, labels = _frames(replace(digits, split="held_out", digits=1), range(HELD_OUT_FRAMES))
    return float((network.eval()(frames).argmax(dim=1) == labels).float().mean())


def load_or_train(digits: MovingDigits, path: Path | None, *, progress: bool = True) -> DigitClassifier:
    """The classifier kept in `path` if it is whole and of the same digits, or a new one, which is then kept
    there."""
    if path is None:
        return train_classifier(digits, steps=STEPS, progress=progress)
    network = _kept(path, digits)
    if network is not None:
        return DigitClassifier(network, accuracy(network, digits))
    make_folder(path.parent)
    classifier = train_classifier(digits, steps=STEPS, progress=progress)
    keep(classifier, digits, path)
    return classifier


def keep(classifier: DigitClassifier, digits: MovingDigits, path: Path) -> None:
    """Writes the classifier with the settings of its digits. Raises CheckpointError if the disk refuses."""
    data = save(classifier.network.state_dict(), {SETTINGS: _settings(digits)})
    write_atomic(path, data)


def _kept(path: Path, digits: MovingDigits) -> DigitNetwork | None:
    if not path.exists():
        return None
    network = DigitNetwork(digits.canvas)
    try:
        check_regular(path)
        with parsing(path), safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(SETTINGS) != _settings(digits):
                return None
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except CheckpointError:
        return None
    return network.eval()


def _settings(digits: MovingDigits) -> str:
    training = {"steps": STEPS, "batch": BATCH, "lr": LEARNING_RATE, "blur": MAX_BLUR, "noise": NOISE}
    return json.dumps(asdict(replace(digits, split="train")) | training, sort_keys=True)


def _frames(digits: MovingDigits, indices: range) -> tuple[Tensor, Tensor]:
    videos, _, labels, _ = digits.batch(np.asarray(indices), num_frames=1)
    return torch.from_numpy(videos[:, 0, :, :, 0]).float()[:, None] / 255, torch.from_numpy(labels[:, 0])
