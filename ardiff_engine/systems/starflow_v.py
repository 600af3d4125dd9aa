# SPDX-License-Identifier: Apache-2.0
"""STARFlow-V: a normalising flow. Chunks of tokens are entered again until two iterations agree; what an
iteration has put into the cache is rolled back, except for the last one."""

from ardiff_engine.diffusion.agreement import Agreement
from ardiff_engine.memory import Window
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.official.token_flow import TokenFlow
from ardiff_engine.systems.official.token_levels import levels

SYSTEM = TokenFlow(
    name="starflow-v",
    title="STARFlow-V",
    paper="2511.20462",
    repository="apple/ml-starflow",
    plan=stage_major(1),
    solver=levels(6),
    memory=Window(21),
    num_frames=21,
    guidance=0.0,
    grid=8,
    chunk=64,
    agreement=Agreement(0.001, 32),
    text_tokens=256,
    blocks=6,
    not_served="it is a flow without noise levels, and its network is the user's",
    exact="Events, residuals and latents after each block, with guidance and with windows.",
    left_out="Its network and its denoiser. The trace is that of small frames and random text.",
)
