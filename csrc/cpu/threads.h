// SPDX-License-Identifier: Apache-2.0
// The number of threads that a kernel may use: torch's own setting, `torch.set_num_threads`, in any calling
// thread.
#pragma once

namespace ardiff::cpu {

int max_threads();

}  // namespace ardiff::cpu
