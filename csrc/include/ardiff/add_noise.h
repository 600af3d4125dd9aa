// SPDX-License-Identifier: Apache-2.0
// The forward process: noisy = signal x0 + sigma eps, and the training target from the same pass.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

enum class NoiseTarget { none = 0, eps = 1, v = 2, flow = 3 };

template <class V>
ARDIFF_HD inline V noised(V signal, V x0, V sigma, V eps) {
  return fma(signal, x0, sigma * eps);
}

template <NoiseTarget target, class V>
ARDIFF_HD inline V noise_target(V signal, V x0, V sigma, V eps) {
  if constexpr (target == NoiseTarget::v) {
    return signal * eps - sigma * x0;
  } else if constexpr (target == NoiseTarget::flow) {
    return eps - x0;
  } else {
    return eps;
  }
}

template <class T>
struct AddNoiseParamsOf {
  const T* x0;                  // [rows, elements]
  const float *signal, *sigma;  // [rows]
  const T* noise;               // [rows, elements], or null: from keys
  const std::int64_t* keys;     // [rows, 5], or null: from noise
  T *noisy, *target;            // [rows, elements]; target is not written for NoiseTarget::none
  std::int64_t rows, elements;
  NoiseTarget kind;
};
using AddNoiseParams = AddNoiseParamsOf<float>;

}  // namespace ardiff
