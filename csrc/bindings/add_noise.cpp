// SPDX-License-Identifier: Apache-2.0
#include "ardiff/add_noise.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, add_noise, const ardiff::AddNoiseParams& p)
ARDIFF_LAUNCHER(add_noise, ardiff::AddNoiseParamsOf)

using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::AddNoiseParamsOf<T> add_noise_params(std::uintptr_t x0, std::uintptr_t signal, std::uintptr_t sigma,
                                             std::uintptr_t noise, std::uintptr_t keys, std::uintptr_t noisy,
                                             std::uintptr_t target, std::int64_t rows, std::int64_t elements,
                                             int kind) {
  ardiff::AddNoiseParamsOf<T> p{};
  p.x0 = pointer<const T>(x0);
  p.signal = pointer<const float>(signal);
  p.sigma = pointer<const float>(sigma);
  p.noise = pointer<const T>(noise);
  p.keys = pointer<const std::int64_t>(keys);
  p.noisy = pointer<T>(noisy);
  p.target = pointer<T>(target);
  p.rows = rows;
  p.elements = elements;
  p.kind = static_cast<ardiff::NoiseTarget>(kind);
  return p;
}

}  // namespace

ARDIFF_BINDING(add_noise) {
  ardiff::bindings::def(m, "add_noise", &add_noise_params<float>, &ardiff::cpu::add_noise);
  ARDIFF_DEF_CUDA(m, add_noise, add_noise_params);
}
