#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <exception>
#include <thread>

#include "laprox/tensor.h"

namespace laprox {

/// 0: as many threads as the machine runs at once.
inline int thread_count(int asked) {
  return asked > 0 ? asked : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

/// Runs body(0) .. body(tasks - 1) on `threads` threads, in any order. The first exception is rethrown here: none may
/// leave an OpenMP region. Tasks must not depend on the thread that runs them, so that results do not depend on
/// `threads`.
template <class Body>
void parallel_for(int threads, Index tasks, const Body& body) {
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (Index task = 0; task < tasks; ++task) {
    if (failed) continue;
    try {
      if constexpr (std::invocable<Body, Index, std::size_t>) {
        body(task, static_cast<std::size_t>(omp_get_thread_num()));
      } else {
        body(task);
      }
    } catch (...) {
#pragma omp critical(laprox_parallel_for)
      if (!failed) failure = std::current_exception();
      failed = true;
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace laprox
