#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>

namespace laprox::cli {

/// --config: a TOML file with a section per subcommand. What it says and no option is called is refused.
void add_config(CLI::App& app);

/// The file that --config names; empty where it is not given.
std::filesystem::path config_file(const CLI::App& app);

/// Throws UsageError, with the nearest name, where the first word of the command line is no subcommand.
void check_subcommand(const CLI::App& app, int argc, char** argv);

}  // namespace laprox::cli
