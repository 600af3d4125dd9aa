# SPDX-License-Identifier: Apache-2.0
"""Go-with-the-Flow: noise that moves along the optical flow of the video that is wanted."""

import torch

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import DPMSolver
from ardiff_engine.memory import Full
from ardiff_engine.noise import Warped
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System

FRAMES = 13
AT_REST = torch.zeros(FRAMES - 1, 2, 1, 1)
"""A flow for any size of frames. That of a video comes with its request, as noise=Warped(flow, fresh)."""

SYSTEM = System(
    name="go-with-the-flow",
    title="Go-with-the-Flow",
    paper="2501.08331",
    repository="VGenAI-Netflix-Eyeline-Research/Go-with-the-Flow",
    plan=pyramid(0.0),
    solver=DPMSolver(FlowSchedule(5.0), 30),
    memory=Full(joint=True),
    noise=Warped(AT_REST),
    guidance=6.0,
    num_frames=FRAMES,
    calls_of=by_pass,
    stores_last=False,
    exact="The noise, its weights, and noise that is blended in.",
    left_out="The flow is in latent pixels: no larger field that is shrunk. CogVideoX and its schedule.",
)
