# SPDX-License-Identifier: Apache-2.0
"""The `triton` backend: one file per op, torch tensors in and out, on any GPU that Triton knows.

| file | functions |
|---|---|
| `frame_attention`, `frame_attention_backward` | `run` each |
| `modulate` | `run`, `backward` |
| `gate_residual` | `run`, `run_in_place`, `backward` |
| `norm_rope_pages`, `norm_rope`, `bias_gelu` | `run`, `backward` |
| `norm_rope_write`, `add_noise`, `solver_step`, `philox_normal`, `sample_timesteps` | `run` each |
| `pool_pages` | `run` |
| `pages` | `copy_pages`, `rotate_pages` |

Each takes what the runner of its op in `ardiff_engine.ops` takes, after that op's checks, and returns what it
returns. Ids out of range are skipped, and `ops.check_device` reports them, as with the CUDA kernels. No
function reads a tensor's values on the host, so a call can be captured in a CUDA graph. Sums have a fixed
order: the same call gives the same bits. Shared parts: `frame_attention_tile` (tiles and views), `frame_sums`
(gradients of per-frame rows), `inverse_index`, `turns` (sine and cosine), `launch`.

Importing a file imports Triton. With TRITON_INTERPRET=1 in the environment by then, its kernels run on CPU
tensors in Triton's interpreter; `tools/triton_check.py` compiles them without a GPU.
"""
