// SPDX-License-Identifier: Apache-2.0
// What a CUDA status means, and the versions of driver and runtime: for error messages and `ardiff info`.
#include "cuda.h"

#if defined(ARDIFF_WITH_CUDA)
namespace py = pybind11;

namespace {

// The machine cannot run CUDA kernels of this build at all, as opposed to: this launch went wrong.
bool unavailable(cudaError_t status) {
  switch (status) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorCallRequiresNewerDriver:
      return true;
    default:
      return false;
  }
}

py::tuple describe(int code) {
  const auto status = static_cast<cudaError_t>(code);
  return py::make_tuple(cudaGetErrorName(status), cudaGetErrorString(status), unavailable(status));
}

// 13000 stands for 13.0; a driver of 0 means that none is installed.
py::tuple versions() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  return py::make_tuple(driver, runtime);
}

}  // namespace

ARDIFF_BINDING(cuda_status) {
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("describe", &describe, "(name, message, whether CUDA is unavailable here) of a status");
  cuda.def("versions", &versions, "(driver, runtime), 13000 for 13.0, driver 0 for none");
}
#endif
