#include "module.h"

#include <nanobind/stl/string.h>
#include <omp.h>

#include "laprox/version.h"

NB_MODULE(_core, module) {
  module.doc() = "The C++ library. Use the package laprox, which checks and documents what it passes to this.";
  module.def("version", &laprox::version, "Version of the library, for example '0.1.0'.");
  module.def("commit", &laprox::commit, "Git commit that it was built from, or 'unknown'.");
  module.def(
      "release_threads", [] { omp_pause_resource_all(omp_pause_soft); },
      "Ends the threads that wait for the calling thread's next work.");
#ifdef LAPROX_CUDA
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  laprox::python::add_errors(module);
  laprox::python::add_names(module);
  laprox::python::add_source(module);
  laprox::python::add_layer_view(module);
  laprox::python::add_policies(module);
  laprox::python::add_replay(module);
  laprox::python::add_cuts(module);
  laprox::python::add_verify(module);
}
