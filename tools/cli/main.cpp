#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "commands.h"
#include "config.h"
#include "laprox/error.h"
#include "laprox/report.h"
#include "laprox/temporaries.h"
#include "laprox/trust.h"
#include "laprox/version.h"
#include "output.h"

namespace {

enum ExitCode { kDone = 0, kUsage = 2, kBadFile = 3, kBackend = 4, kVerification = 5, kBug = 70 };

constexpr const char* kExamples = R"(
Examples:
  laprox inspect dump.h5
  laprox sweep dump.h5 --policy snapkv,h2o,laprox --budget 5%,10%,20% -o report.h5
  laprox report report.h5 --format csv
  laprox verify dump.h5 --candidate mine.h5 --policy laprox+layer
  laprox policies laprox

Exit codes: 0 done, 2 usage, 3 bad dump or file, 4 backend or device, 5 verification failed, 70 a bug in laprox.)";

int fail(ExitCode code, const std::string& message) {
  laprox::cli::note("laprox: " + message);
  return code;
}

int run(int argc, char** argv) {
  CLI::App app{
      "laprox replays dumps of attention tensors and measures what evicting KV-cache entries does to each layer's "
      "output."};
  app.name("laprox");
  app.footer(kExamples);
  app.set_version_flag("--version", fmt::format("laprox {} ({})", laprox::version(), laprox::commit()));
  app.require_subcommand(1);
  laprox::cli::add_config(app);
  app.add_flag_callback(
      "--trusted", [] { laprox::trust_files(true); },
      "open files at once, not in a child process first; damaged ones may then crash the program");
  app.fallthrough();  // so that --config may stand behind the subcommand
  laprox::cli::add_inspect(app);
  laprox::cli::add_policies(app);
  laprox::cli::add_sweep(app);
  laprox::cli::add_score(app);
  laprox::cli::add_report(app);
  laprox::cli::add_merge(app);
  laprox::cli::add_compare(app);
  laprox::cli::add_verify(app);
  laprox::cli::add_synth(app);
  laprox::cli::check_subcommand(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);  // prints help, the version, or what is wrong
    return status == 0 ? kDone : kUsage;
  }
  return kDone;
}

int guarded_run(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const laprox::UsageError& error) {
    return fail(kUsage, error.what());
  } catch (const laprox::FileError& error) {
    return fail(kBadFile, error.what());
  } catch (const laprox::BackendError& error) {
    return fail(kBackend, error.what());
  } catch (const laprox::VerificationError& error) {
    return fail(kVerification, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kBackend, "out of memory; 'laprox inspect' prints what a dump needs");
  } catch (const std::exception& error) {
    return fail(kBug, fmt::format("{}\nThis is a bug in laprox {} ({}); please report it with the command you ran.",
                                  error.what(), laprox::version(), laprox::commit()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  laprox::cli::occupy_standard_streams();
  laprox::remove_temporaries_on_signals();
  const int status = guarded_run(argc, argv);
  if (laprox::cli::output_failed() && status == kDone) {
    return fail(kBadFile, "standard output: what was printed could not be written; is the disk full?");
  }
  if (status == kBadFile) {
    // HDF5 closes at exit what could not be closed before, as on a full disk, and crashes on it: skip its exit handler.
    std::fflush(nullptr);
    std::_Exit(status);
  }
  return status;
}
