#pragma once

#include <CLI/CLI.hpp>

#include "laprox/ranks.h"

namespace laprox::cli {

/// Each adds its subcommand to `app`; the subcommand's work runs when the command line is parsed.
void add_inspect(CLI::App& app);
void add_policies(CLI::App& app);
void add_sweep(CLI::App& app, Ranks& ranks);
void add_score(CLI::App& app);
void add_report(CLI::App& app);
void add_merge(CLI::App& app);
void add_compare(CLI::App& app);
void add_synth(CLI::App& app);
void add_verify(CLI::App& app);

}  // namespace laprox::cli
