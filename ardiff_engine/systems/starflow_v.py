# SPDX-License-Identifier: Apache-2.0
"""STARFlow-V: a normalising flow. Chunks of tokens are entered again until two iterations agree; what an
iteration has put into the cache is rolled back, except for the last one."""

from dataclasses import replace

from ardiff_engine.diffusion.agreement import Agreement
from ardiff_engine.memory import Full, Window
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.token_flow import TokenFlow
from ardiff_engine.systems.token_levels import levels
from ardiff_engine.systems.wan_family import Entry

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


def from_spec(entry: Entry) -> TokenFlow:
    window = entry.get("window")
    return replace(
        SYSTEM,
        solver=levels(entry["blocks"]),
        memory=Window(window) if window else Full(),
        num_frames=entry["frames"],
        guidance=entry["guidance"],
        grid=entry["grid"],
        chunk=entry["jacobi_block"],
        agreement=Agreement(entry["threshold"], entry["max_iterations"]),
        text_tokens=entry["text_tokens"],
        blocks=entry["blocks"],
        window=window,
        context=entry.get("context_frames", 0),
    )
