#include <laprox/laprox.h>

#include <cmath>
#include <cstdio>

/// Sweeps the dump named on the command line; fails unless the error is the published one.
int main(int, char** arguments) {
  const laprox::DumpReader dump(arguments[1]);
  laprox::SweepOptions options;
  options.policies = {laprox::parse_policy("laprox+layer")};
  options.budgets = {laprox::parse_budget("410")};
  const auto result = laprox::sweep_dump(dump, options, *laprox::make_cpu_backend());
  const double error = result.policies[0].cells[0].model.relative_error;
  // A matrix that the library made is freed here: compiled for another instruction set, both allocate alike.
  if (!dump.read_output(0)) return 1;
  std::printf("%.6f\n", error);
  return std::abs(error - 0.084610) < 1e-5 ? 0 : 1;
}
