#include "laprox/report.h"

#include <fmt/format.h>

#include "arguments.h"
#include "commands.h"
#include "output.h"
#include "render.h"

namespace laprox::cli {

void add_report(CLI::App& app) {
  struct Arguments {
    std::string path, format;
    TableOptions table;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("report", "Print a report that sweep wrote");
  command->add_option("report", arguments->path, "the report (HDF5)")->required();
  add_format(*command, arguments->format, {"table", "csv", "json"});
  add_table_options(*command, arguments->table);
  command->footer(R"(
Examples:
  laprox report report.h5
  laprox report report.h5 --metric regret
  laprox report report.h5 --format csv > errors.csv)");
  command->callback([arguments, command] {
    note_idle_table_options(*command, arguments->format);
    out_as_it_is(render(read_report(arguments->path), arguments->format, arguments->table));
  });
}

}  // namespace laprox::cli
