#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/exchange.h"
#include "base/parallel.h"
#include "laprox/dump_reader.h"
#include "laprox/error.h"

namespace laprox {

std::vector<std::string> content_hashes(const std::vector<const DumpReader*>& dumps, int threads, Ranks& ranks) {
  const Turns turns(dumps.size(), ranks);
  const std::vector<std::size_t> own = turns.of(ranks.rank());
  std::vector<std::string> mine(own.size());
  const Index at_a_time = std::max(1, threads), count = static_cast<Index>(own.size());
  for (Index first = 0; first < count; first += at_a_time) {
    ranks.look_out();
    parallel_for(threads, std::min(at_a_time, count - first), [&](Index n) {
      const auto turn = static_cast<std::size_t>(first + n);
      mine[turn] = dumps[own[turn]]->content_hash();
    });
  }
  ByteWriter writer;
  writer.put(mine);
  std::vector<std::string> all = turns.ordered(ranks.all_gather(writer.bytes()));
  for (std::size_t dump = 0; dump < dumps.size(); ++dump) dumps[dump]->learn_hash(all[dump]);
  return all;
}

void check_distinct(const std::vector<DumpReader>& dumps, int threads, Ranks& ranks) {
  std::map<std::uintmax_t, std::vector<const DumpReader*>> by_size;
  for (const DumpReader& dump : dumps) by_size[std::filesystem::file_size(dump.info().path)].push_back(&dump);
  std::vector<const DumpReader*> same_size;
  for (const auto& [size, of_size] : by_size) {
    if (of_size.size() > 1) same_size.insert(same_size.end(), of_size.begin(), of_size.end());
  }
  const std::vector<std::string> hashes = content_hashes(same_size, threads, ranks);
  std::map<std::string, std::string> path_of;
  for (std::size_t d = 0; d < same_size.size(); ++d) {
    const std::string path = same_size[d]->info().path.string();
    const auto [other, is_new] = path_of.try_emplace(hashes[d], path);
    if (is_new) continue;
    throw UsageError(
        fmt::format("{}: is the same dump as {} (SHA-256 {}), which would count as two samples; give it "
                    "once",
                    path, other->second, other->first));
  }
}

}  // namespace laprox
