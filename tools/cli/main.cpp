#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <sstream>

#include "commands.h"
#include "config.h"
#include "laprox/error.h"
#include "laprox/report.h"
#include "laprox/temporaries.h"
#include "laprox/trust.h"
#include "laprox/version.h"
#include "output.h"
#include "ranks.h"
#include "waiting.h"

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

laprox::cli::Ending failure(ExitCode code, const std::string& message) { return {code, "laprox: " + message}; }

/// Help, the version, or what is wrong with the command line.
laprox::cli::Ending end_of_parsing(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream out, wrong;
  const int status = app.exit(error, out, wrong);
  laprox::cli::out_as_it_is(out.str());
  std::string message = wrong.str();
  if (message.ends_with('\n')) message.pop_back();
  return {status == 0 ? kDone : kUsage, message};
}

laprox::cli::Ending run(int argc, char** argv, laprox::Ranks& ranks) {
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
  laprox::cli::add_sweep(app, ranks);
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
    return end_of_parsing(app, error);
  }
  return {kDone, {}};
}

laprox::cli::Ending guarded_run(int argc, char** argv, laprox::Ranks& ranks) {
  try {
    return run(argc, argv, ranks);
  } catch (const laprox::RankFailed& error) {
    return failure(kBackend, error.what());  // that rank says more, and its exit code counts
  } catch (const laprox::UsageError& error) {
    return failure(kUsage, error.what());
  } catch (const laprox::FileError& error) {
    return failure(kBadFile, error.what());
  } catch (const laprox::BackendError& error) {
    return failure(kBackend, error.what());
  } catch (const laprox::VerificationError& error) {
    return failure(kVerification, error.what());
  } catch (const std::bad_alloc&) {
    return failure(kBackend, "out of memory; 'laprox inspect' prints what a dump needs");
  } catch (const std::exception& error) {
    return failure(kBug, fmt::format("{}\nThis is a bug in laprox {} ({}); please report it with the command you ran.",
                                     error.what(), laprox::version(), laprox::commit()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  laprox::cli::wait_without_spinning(argv);
  laprox::cli::occupy_standard_streams();
  laprox::remove_temporaries_on_signals();
  auto ranks = laprox::cli::join_ranks(argc, argv);
  laprox::cli::speak(ranks->is_first());
  laprox::cli::Ending ending = guarded_run(argc, argv, *ranks);
  if (laprox::cli::output_failed() && ending.status == kDone) {
    ending = failure(kBadFile, "standard output: what was printed could not be written; is the disk full?");
  }
  const int status = laprox::cli::end_together(*ranks, ending);
  ranks.reset();
  if (status == kBadFile) {
    // HDF5 closes at exit what could not be closed before, as on a full disk, and crashes on it: skip its exit handler.
    std::fflush(nullptr);
    std::_Exit(status);
  }
  return status;
}
