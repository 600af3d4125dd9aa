// SPDX-License-Identifier: Apache-2.0
#include "ardiff/sample_timesteps.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, sample_timesteps, const ardiff::SampleTimestepsParams& p)
ARDIFF_ONE_LAUNCHER(sample_timesteps, const SampleTimestepsParams&)

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
  ARDIFF_DEF_ONE(m, "sample_timesteps", sample_timesteps_params, sample_timesteps)
}
