// SPDX-License-Identifier: Apache-2.0
// What a kernel on a device can find wrong but not report: it skips the row or page, sets its bit in one
// int32 of the device, and the bit stays until the host looks (ardiff_engine.ops.check_device).
#pragma once

#include "integers.h"

namespace ardiff {

enum DeviceError : std::int32_t {
  kBadFrameId = 1,  // modulate, gate_residual: a row that the tables do not have; the output row is NaN
  kBadSlot = 2,     // norm_rope_write_: a slot outside the pool; nothing is written for the token
  kBadPage = 4,     // copy_pages_, rotate_pages_, pool_pages_: outside the pool; neither read nor written
  kBadView = 8,     // frame_attention: a page or row outside the pool; the entry is not seen
};

}  // namespace ardiff
