// SPDX-License-Identifier: Apache-2.0
#include "ardiff/sample_timesteps.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, sample_timesteps, const ardiff::SampleTimestepsParams& p)
#if defined(ARDIFF_WITH_CUDA)
namespace ardiff::cuda {
cudaError_t sample_timesteps(const SampleTimestepsParams& p, cudaStream_t stream);
}
#endif

using ardiff::bindings::pointer;

namespace {

ardiff::SampleTimestepsParams sample_timesteps_params(std::uintptr_t out, std::int64_t batch,
                                                      std::int64_t frames, std::int64_t timesteps, int rule,
                                                      std::int64_t seed, std::int64_t first_sample) {
  return {pointer<std::int64_t>(out),
          batch,
          frames,
          timesteps,
          seed,
          first_sample,
          static_cast<ardiff::TimestepRule>(rule)};
}

}  // namespace

ARDIFF_BINDING(sample_timesteps) {
  ardiff::bindings::def(m, "sample_timesteps", &sample_timesteps_params, &ardiff::cpu::sample_timesteps);
#if defined(ARDIFF_WITH_CUDA)
  ardiff::bindings::def_cuda(m, "sample_timesteps", &sample_timesteps_params,
                             &ardiff::cuda::sample_timesteps);
#endif
}
