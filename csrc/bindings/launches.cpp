// SPDX-License-Identifier: Apache-2.0
// Every kernel that the launchers can start, for the checks that compile all of them with NVRTC.
#include "cuda.h"

#if defined(ARDIFF_WITH_LAUNCH_LIST)
ARDIFF_BINDING(launches) {
  ardiff::bindings::launches_module(m).def(
      "kernels", [] { return ardiff::cuda::listed_kernels(); }, "name -> sizes of the parameters, in bytes");
}
#endif
