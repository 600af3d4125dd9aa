// SPDX-License-Identifier: Apache-2.0
// The module is not linked to torch, so that one build serves every torch version. The one thing it wants to
// know, the thread count, is looked up by name in the libtorch_cpu that the process has already loaded.
// Asking OpenMP instead would be right only in the thread that called torch.set_num_threads: OpenMP keeps the
// number per thread.
#include "cpu/threads.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace ardiff::cpu {
namespace {

using ThreadCount = int (*)();

int openmp_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

ThreadCount find_thread_count() {
#if defined(_OPENMP) && !defined(_WIN32)
#if defined(__APPLE__)
  void* library = dlopen("libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
  void* symbol =
      library ? dlsym(library, "_ZN2at15get_num_threadsEv") : nullptr;  // int at::get_num_threads()
  if (symbol) return reinterpret_cast<ThreadCount>(symbol);
#endif
  return &openmp_threads;
}

}  // namespace

int max_threads() {
  static const ThreadCount count = find_thread_count();
  return count();
}

}  // namespace ardiff::cpu
