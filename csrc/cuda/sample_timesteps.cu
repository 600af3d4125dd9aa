// SPDX-License-Identifier: Apache-2.0
// Training timesteps by the urn walk: out int64 [batch, frames].
//
// Bytes: 8 per frame, written once. A sample takes frames + timesteps - 2 positions, each a multiply and a
// compare, and a Philox block of 10 rounds every fourth: about 20 integer operations per position. A thousand
// timesteps take some 10 us, all samples side by side; it replaces a copy from the host, not a kernel.
//
// One thread per sample, as the walk is serial; small blocks, so that a batch spreads over the SMs.
#include "ardiff/sample_timesteps.h"
#include "launch.cuh"

namespace ardiff::cuda {

constexpr int kSampleThreads = 32;

__global__ void sample_timesteps_kernel(SampleTimestepsParams p);

#if ARDIFF_KERNELS
// Word i of one sample; the four words of a block are kept, since positions ask for them in order.
class WordStream {
 public:
  __device__ explicit WordStream(const NoiseKey& key) : key_(key) {}
  __device__ std::uint32_t at(std::int64_t index) {
    if (index / 4 != block_) {
      block_ = index / 4;
      philox(key_, static_cast<std::uint32_t>(block_), words_);
    }
    // Not words_[index % 4]: an index known only at run time would move the array to local memory.
    const int word = static_cast<int>(index % 4);
    return word == 0 ? words_[0] : word == 1 ? words_[1] : word == 2 ? words_[2] : words_[3];
  }

 private:
  NoiseKey key_;
  std::int64_t block_ = -1;
  std::uint32_t words_[4] = {};
};

__global__ void __launch_bounds__(kSampleThreads) sample_timesteps_kernel(SampleTimestepsParams p) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x;
  if (row >= p.batch) return;
  WordStream stream(timesteps_key(p.seed, p.first_sample + row));
  draw_timesteps(stream, p, p.out + row * p.frames);
}
#endif

#if ARDIFF_LAUNCHERS
Status sample_timesteps(const SampleTimestepsParams& p, Stream stream) {
  if (p.batch == 0) return kSuccess;
  const auto blocks = static_cast<unsigned>((p.batch + kSampleThreads - 1) / kSampleThreads);
  return launch<sample_timesteps_kernel>({blocks}, {kSampleThreads}, stream, p);
}
#endif

}  // namespace ardiff::cuda
