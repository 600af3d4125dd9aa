# SPDX-License-Identifier: Apache-2.0
"""A small text-to-video model with random weights, in a folder that diffusers and transformers write."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

WORDS = ["</s>", "<pad>", "<unk>", "a", "red", "cat", "walks", "on", "the", "beach", "blue", "dog", "swims"]
TEXT_WIDTH = 16
MULTIPLE = 16
"""Of height and width of its videos."""


def transformer(**changes: object):
    from diffusers import WanTransformer3DModel

    return _transformer(WanTransformer3DModel, **changes)


def _transformer(kind: type, seed: int = 0, **changes: object):
    torch.manual_seed(seed)
    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 64,
    }
    model = kind(**settings | changes).eval()
    # As initialised, prompts and timesteps hardly show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def image_encoder(width: int = 8):
    """CLIP's vision tower, with as many tokens as the true one: 257."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(3)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=2,
        )
    ).eval()


def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def image_pipeline(transformer: object, **changes: object):
    """diffusers' own pipeline from a first picture, of these parts."""
    from diffusers import WanImageToVideoPipeline

    parts = wan_pipeline().components | {"transformer": transformer, "transformer_2": None}
    parts |= {"image_encoder": None, "image_processor": None}
    pipeline = WanImageToVideoPipeline(**parts | changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def vae_22():
    """Of the kind of Wan 2.2's TI2V model: 16 pixels to a latent."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    ).eval()


def vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    ).eval()


def text_encoder(width: int = TEXT_WIDTH):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(2)
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
        )
    ).eval()


def official_umt5(name: str) -> str:
    """What Wan's official file calls a weight of `text_encoder`."""
    parts = {
        "SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "SelfAttention": "attn",
        "DenseReluDense.wi_0": "ffn.gate.0",
        "DenseReluDense.wi_1": "ffn.fc1",
        "DenseReluDense.wo": "ffn.fc2",
    }
    head, *inner = name.removeprefix("encoder.").removeprefix("block.").split(".", 1)
    if name.startswith("shared."):
        return "token_embedding.weight"
    if head == "final_layer_norm":
        return "norm.weight"
    _, layer, rest = inner[0].split(".", 2)
    if rest == "layer_norm.weight":
        return f"blocks.{head}.norm{int(layer) + 1}.weight"
    theirs = next(theirs for theirs in parts if rest.startswith(theirs))
    return f"blocks.{head}.{rest.replace(theirs, parts[theirs], 1)}"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def scheduler(shift: float = 3.0):
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def wan_pipeline(**changes: object):
    """diffusers' own pipeline of these parts."""
    from diffusers import WanPipeline

    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "transformer": transformer(),
        "vae": vae(),
        "scheduler": scheduler(),
    }
    return WanPipeline(**parts | changes)


def skyreels_pipeline():
    from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel

    return SkyReelsV2DiffusionForcingPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        transformer=_transformer(SkyReelsV2Transformer3DModel, inject_sample_info=True),
        vae=vae(),
        scheduler=scheduler(8.0),
    )


def write_folder(folder: Path) -> Path:
    """The transformer in shards."""
    wan_pipeline().save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    transformer().save_pretrained(folder / "transformer", max_shard_size="40KB")
    return folder
