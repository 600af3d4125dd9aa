# SPDX-License-Identifier: Apache-2.0
"""Settings of the three training commands, and how they are read from TOML.

One file holds one command: tables are sections, unknown names are errors that point to the nearest known one,
and `section.name=value` overrides come last. The classes are the documentation of the names and their
defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ardiff_engine.data.config import DataConfig
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.settings import LARGEST, at_least
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.log_config import LogConfig

SMALLEST_GAN_IMAGE = 24
MOST_THREADS = 1 << 12


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Where and how long.

    output: folder of this run: log, loss curve, checkpoints, and the exported model.
    steps: optimizer steps of the whole run, resumed parts included.
    batch: clips (or frames) per step and process; `accumulate` of them are summed up before the optimizer
        moves.
    seed: key of all randomness. Sample ids count over steps and processes, so no two processes draw the same.
    device: "cuda" is the GPU of the process's own number under `torchrun`.
    precision: of the network. "bfloat16": autocast; weights, gradients and optimizer stay float32.
    recompute: activations of a block are computed again for its gradient instead of kept.
    shard: stage 2 under `torchrun`: weights between steps, moments and moving average are split over the
        processes (FSDP2), and each writes its own part of a checkpoint.
    validation_clips: held-out clips (or frames) of a validation, over all processes.
    *_every: steps between two log lines, validations and checkpoints; 0 switches them off.
    keep: checkpoints that stay on disk. threads: CPU threads, None for torch's choice.
    """

    output: str
    steps: int
    batch: int = 16
    accumulate: int = 1
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    recompute: bool = False
    shard: bool = False
    threads: int | None = None
    log_every: int = 10
    validate_every: int = 500
    validation_clips: int = 64
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        at_least("run", self, 1, "steps", "batch", "accumulate", "validation_clips", "keep")
        at_least("run", self, 0, "log_every", "validate_every", "checkpoint_every")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(f"run.threads: got {self.threads}, expected 1 to {MOST_THREADS}.")


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """The learning rate: linear over `warmup` steps, then constant, or a half cosine down to final_lr · lr.

    kind: "adamw"; "muon": the weights of linear layers move by Muon (Jordan et al. 2024), all
        others by AdamW; Muon's steps are scaled as AdamW's are, so that one lr holds for both.
    beta1, beta2, eps: AdamW's.
    clip_norm: largest norm of the gradient of all trained parameters together; 0 switches clipping off.
    weight_decay applies to the weights of linear and convolutional layers, not to biases, norms and tables of
        contexts, tokens and classes.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    final_lr: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        at_least("optimizer", self, 0, "lr", "eps", "weight_decay", "warmup", "final_lr", "clip_norm")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}: got {getattr(self, name)}, expected 0 <= {name} < 1.")


@dataclass(frozen=True, slots=True)
class EmaConfig:
    """Moving average of the weights; decay 0 switches it off."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(
                explain("ema.decay", got=self.decay, expected="0 <= decay < 1", fix="0.9999 is usual.")
            )


@dataclass(frozen=True, slots=True)
class VaeLossConfig:
    """Weights of the stage-1 loss; 0 switches a term off. See `training.losses` for the formulas.

    latent_noise: standard deviation of noise added to the unit-norm latents before decoding. It makes near
        latents decode to near images, which stage 2 needs because its samples are never exact.
    classes: cross entropy of a small classifier on the latents, which is trained beside the model and thrown
        away. It ends the plateau on which a young encoder tells where an object is but not what it is (needs
        data with classes).
    lpips_weights: file with the VGG16 and LPIPS weights (safetensors); needed when lpips > 0.
    gan_start: step from which the discriminator takes part.
    """

    l1: float = 1.0
    l2: float = 0.0
    kl: float = 0.0
    lpips: float = 0.0
    gan: float = 0.0
    gan_start: int = 0
    classes: float = 0.0
    latent_noise: float = 0.0
    sample_posterior: bool = True
    lpips_weights: str = ""

    def __post_init__(self) -> None:
        at_least("loss", self, 0, "l1", "l2", "kl", "lpips", "gan", "gan_start", "classes", "latent_noise")
        if self.lpips and not self.lpips_weights:
            raise ConfigError(
                explain(
                    "loss.lpips_weights",
                    got="nothing",
                    expected="a .safetensors file with VGG16 and LPIPS weights",
                    fix="Give one, or set loss.lpips = 0.",
                )
            )


def of_stage_1(log: LogConfig, data: DataConfig) -> None:
    """ConfigError: what only stage 2 has."""
    if log.samples_every:
        raise ConfigError("log.samples_every: stage 1 shows reconstructions at every validation. Drop it.")
    if log.keep_best:
        raise ConfigError("log.keep_best: got true for stage 1, which keeps the last weights. Drop it.")
    if data.clips:
        raise ConfigError(
            f"data.clips: got {data.clips}, expected 0 for stage 1, which draws its pictures anew: clips are "
            "encoded once for stage 2. Drop it."
        )


def no_buckets(data: DataConfig) -> None:
    if data.buckets:
        raise ConfigError(
            "data.buckets: TiTok's pictures have one size. Drop it, or use a frame_vae and network = 'wan'."
        )


@dataclass(frozen=True, slots=True)
class VaeTrainConfig:
    """Stage 1: the frame autoencoder.

    trainable: "all"; "decoder", which leaves the latents as they are, so stage 2 stays valid; or "temporal",
        those parameters whose name contains "temporal" (the temporal variant).
    init: folder or file of weights to start from. channels_last: memory layout of the convolutions, faster on
        CPUs.
    initialisation: of a run without `init`. "official" is TiTok's (every matrix with standard deviation 0.02,
        meant for widths of 512 and more); "fan_in" is for narrow networks, which with the other stay on the
        mean image for thousands of steps (`training.fan_in`).
    """

    run: RunConfig
    model: TiTokConfig
    data: DataConfig = field(default_factory=lambda: DataConfig(num_frames=1))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: VaeLossConfig = field(default_factory=VaeLossConfig)
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(decay=0.0))
    trainable: Literal["all", "decoder", "temporal"] = "all"
    init: str = ""
    initialisation: Literal["official", "fan_in"] = "official"
    channels_last: bool = False
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        of_stage_1(self.log, self.data)
        no_buckets(self.data)
        if self.trainable == "temporal" and not self.model.temporal:
            raise ConfigError(
                explain(
                    "trainable",
                    got="'temporal'",
                    expected="a temporal model",
                    fix="Set model.temporal = true.",
                )
            )
        if self.loss.gan and self.model.image_size < SMALLEST_GAN_IMAGE:
            raise ConfigError(
                explain(
                    "loss.gan",
                    got=f"images of {self.model.image_size}",
                    expected=f">= {SMALLEST_GAN_IMAGE} pixels",
                    fix="Set it to 0.",
                )
            )
        if self.model.temporal and self.data.num_frames % self.model.num_frames:
            raise ConfigError(
                explain(
                    "data.num_frames",
                    got=self.data.num_frames,
                    expected=f"a multiple of model.num_frames ({self.model.num_frames})",
                    fix="The temporal decoder needs whole clips.",
                )
            )


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """Videos to latent files: every window of `num_frames` frames, `stride` frames apart.

    fps: frames per second at which the videos are read; None for each one's own rate.
    """

    vae: str
    videos: str
    output: str
    num_frames: int = 16
    stride: int = 16
    fps: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least("encode", self, 1, "num_frames", "stride")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Noise schedule; the defaults are those of AR-Diffusion (linear in sqrt(beta))."""

    kind: Literal["sqrt_linear", "linear", "cosine"] = "sqrt_linear"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    num_timesteps: int = 1000


@dataclass(frozen=True, slots=True)
class DiffusionLossConfig:
    """objective: a name of `training.recipes`, or "module:function", see `training.objective`; the usual one
        follows the settings below.

    prediction: what the network predicts; "flow" for a `Denoising` with a `FlowSchedule` alone.
    timesteps: how the noise levels of a clip's frames go together. "fopp", "uniform", "iid", "shared": see
        `ops.sample_timesteps`; "ptss" (FVDM): iid with probability `independent_probability`, else shared.
    block: frames that stand at one level.
    level_list: the only levels that are drawn; empty for all.
    logit_normal: (mean, deviation) of log(u / (1 - u)) for a level u·T; empty for uniform levels.
    null_probability: share of clips trained with the null context, so that guidance has a trained second
        branch.
    known_probability: share of clips whose first frames (a random number of them) are all but clean, as in a
        continuation: they share one timestep in 0..19, as finished frames do, and count in the loss like any
        other frame.
    teacher_forcing: share of clips in which every frame, at a level of its own, is predicted from the frames
        before it (`forward_clip(history=)`): F autoregressive steps in one pass. The others follow
        `timesteps`.
    history_levels: (first, last) of the noise levels of that history; a clip draws one of them for all its
        frames. history_dropped: share of its frames that stand at the noisiest level instead.
    first_blocks: share of the clips that begin with what their caption says which are cut to their first
        block, with "own_history": captions are learned from those alone, and they are cheap.
    """

    objective: str = "ardiff_engine.training.denoising:denoising"
    prediction: Literal["x0", "eps", "v", "flow"] = "x0"
    timesteps: Literal["fopp", "uniform", "iid", "shared", "ptss"] = "fopp"
    independent_probability: float = 0.2
    block: int = 1
    level_list: tuple[int, ...] = ()
    logit_normal: tuple[float, ...] = ()
    null_probability: float = 0.1
    known_probability: float = 0.0
    teacher_forcing: float = 0.0
    history_levels: tuple[int, ...] = (0, 19)
    history_dropped: float = 0.0
    first_blocks: float = 0.0

    def __post_init__(self) -> None:
        shares = ("null_probability", "known_probability", "teacher_forcing", "independent_probability")
        for name in (*shares, "history_dropped", "first_blocks"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"loss.{name}: got {getattr(self, name)}, expected a share, 0 to 1.")
        if self.first_blocks and self.objective != "own_history":
            raise ConfigError(
                f"loss.first_blocks: got {self.first_blocks} with loss.objective {self.objective!r}, "
                "expected 0: 'own_history' alone cuts clips to their first blocks. Leave it out."
            )
        at_least("loss", self, 1, "block")
        if any(not 0 <= level <= LARGEST for level in self.level_list):
            raise ConfigError(f"loss.level_list: got {self.level_list}, expected levels from 0 on.")
        history = self.history_levels
        if len(history) != 2 or not 0 <= history[0] <= history[1] <= LARGEST:
            raise ConfigError(f"loss.history_levels: got {history}, expected the first and the last level.")
        law = self.logit_normal
        if law and not (len(law) == 2 and abs(law[0]) <= 100 and 0 < law[1] <= 100):
            raise ConfigError(f"loss.logit_normal: got {law}, expected [mean, deviation > 0], at most 100.")
        if law and self.level_list:
            raise ConfigError("loss.logit_normal: level_list is given too. Leave one of them out.")

    def check_levels(self, count: int) -> None:
        """ConfigError: a level that the noise does not have. The last of `history_levels` may be any."""
        highest = max((*self.level_list, self.history_levels[0]))
        if highest >= count:
            raise ConfigError(
                f"loss.level_list, loss.history_levels: got {highest}, expected levels below {count}, the "
                "number of timesteps."
            )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Stage 2: the diffusion transformer. `vae` is needed unless the data are latent files, where it is only
    copied."""

    run: RunConfig
    model: ARDiffusionConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: DiffusionLossConfig = field(default_factory=DiffusionLossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    vae: str = ""
    init: str = ""

    def __post_init__(self) -> None:
        no_buckets(self.data)
        if self.log.samples_every and not self.vae:
            raise ConfigError("log.samples_every: pictures need `vae`. Set it to a folder of stage 1.")
        if not self.vae and self.data.source != "latents":
            raise ConfigError(
                explain(
                    "vae",
                    got="nothing",
                    expected="a folder of stage 1",
                    fix=f"Data source {self.data.source!r} is encoded with it.",
                )
            )
        if self.loss.prediction == "flow":
            raise ConfigError(
                "loss.prediction: got 'flow', expected x0, eps or v with the noise schedules of [schedule]. "
                "For networks that predict a flow use training.objective.Denoising with a FlowSchedule."
            )
        if self.loss.teacher_forcing:
            self.check_history()
        if self.data.beginnings < 1:
            raise ConfigError(
                f"data.beginnings: got {self.data.beginnings}, expected 1 but for network = 'wan': clips of "
                "this one begin anywhere. Leave it out."
            )
        if self.loss.block > self.data.num_frames:
            raise ConfigError(
                f"data.num_frames: got {self.data.num_frames}, and loss.block is {self.loss.block}; expected "
                "clips of a block or more. Lengthen the clips or shorten the block."
            )
        self.loss.check_levels(self.schedule.num_timesteps)
        if self.data.num_frames > self.model.num_frames:
            raise ConfigError(
                explain(
                    "data.num_frames",
                    got=self.data.num_frames,
                    expected=f"at most model.num_frames ({self.model.num_frames})",
                    fix="Shorten the clips or enlarge the model's window.",
                )
            )

    def check_history(self) -> None:
        """For clips that are predicted from frames before. ConfigError: a model that cannot."""
        if not self.model.takes_history:
            raise ConfigError(
                f"loss.teacher_forcing, loss.objective: frames are predicted from a history, and got "
                f"model.mask {self.model.mask!r} and model.merge {self.model.merge!r}; expected "
                "'temporal_causal' and 'separate_norm' or 'share_norm'. Train it without teacher forcing."
            )
