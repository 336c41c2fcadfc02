#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "laprox/dump_reader.h"
#include "laprox/error.h"

namespace laprox {

void check_distinct(const std::vector<DumpReader>& dumps) {
  std::map<std::uintmax_t, std::vector<const DumpReader*>> by_size;
  for (const DumpReader& dump : dumps) by_size[std::filesystem::file_size(dump.info().path)].push_back(&dump);
  std::map<std::string, std::string> path_of;
  for (const auto& [size, same_size] : by_size) {
    if (same_size.size() < 2) continue;
    for (const DumpReader* dump : same_size) {
      const std::string path = dump->info().path.string();
      const auto [other, is_new] = path_of.try_emplace(dump->content_hash(), path);
      if (is_new) continue;
      throw UsageError(
          fmt::format("{}: is the same dump as {} (SHA-256 {}), which would count as two samples; give it "
                      "once",
                      path, other->second, other->first));
    }
  }
}

}  // namespace laprox
