#include "config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "arguments.h"
#include "laprox/error.h"
#include "laprox/names.h"

namespace laprox::cli {

namespace {

/// CLI11's TOML reader; it passes unknown keys over, and this does not.
class CheckedConfig : public CLI::ConfigTOML {
 public:
  explicit CheckedConfig(const CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::ostringstream text;
    text << input.rdbuf();
    if (text.str().find('\0') != std::string::npos) {
      throw UsageError(fmt::format(
          "--config {}: expected a text file in TOML, found binary data{}", path(),
          text.str().compare(0, 4, "\x89HDF") == 0 ? " (an HDF5 file; dumps are given without --config)" : ""));
    }
    std::istringstream again(text.str());
    std::vector<CLI::ConfigItem> parsed = CLI::ConfigTOML::from_config(again);
    for (const CLI::ConfigItem& item : parsed) check(item);
    return parsed;
  }

 private:
  std::string path() const { return app_.get_config_ptr()->as<std::string>(); }

  void check(const CLI::ConfigItem& item) const {
    const CLI::App* command = &app_;
    for (const std::string& section : item.parents) {
      std::vector<std::string> sections;
      for (const CLI::App* each : command->get_subcommands({})) sections.push_back(each->get_name());
      const auto found = std::find(sections.begin(), sections.end(), section);
      if (found == sections.end()) refuse("section [" + section + "]", section, sections);
      command = command->get_subcommand(section);
    }
    if (item.name == "++" || item.name == "--") return;  // CLI11's marks of where a section begins and ends
    std::vector<std::string> keys;
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) keys.push_back(name);
    }
    if (std::find(keys.begin(), keys.end(), item.name) == keys.end()) {
      refuse("key '" + item.fullname() + "'", item.name, keys);
    }
  }

  [[noreturn]] void refuse(const std::string& what, const std::string& name,
                           const std::vector<std::string>& known) const {
    if (known.empty()) throw UsageError(fmt::format("--config {}: unknown {}", path(), what));
    throw UsageError(fmt::format("--config {}: unknown {}; did you mean '{}'? (known: {})", path(), what,
                                 nearest(name, known), fmt::join(known, ", ")));
  }

  const CLI::App& app_;
};

}  // namespace

void add_config(CLI::App& app) {
  app.set_config("--config", "",
                 "read options from a TOML file, a section per subcommand: [sweep] policy = [\"h2o\"] ...")
      ->check(text_file());
  app.config_formatter(std::make_shared<CheckedConfig>(app));
}

std::filesystem::path config_file(const CLI::App& app) {
  const CLI::Option* option = app.get_config_ptr();
  return option != nullptr && option->count() > 0 ? option->as<std::string>() : std::string();
}

void check_subcommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return;
  throw UsageError(fmt::format("unknown command '{}'; did you mean '{}'? (commands: {})", argv[1],
                               nearest(argv[1], names), fmt::join(names, ", ")));
}

}  // namespace laprox::cli
