#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "base/exchange.h"
#include "base/parallel.h"
#include "laprox/dump_reader.h"
#include "laprox/error.h"

namespace laprox {

namespace {

using Dumps = std::vector<const DumpReader*>;

/// What `make` gives for each dump, on every rank: ranks take the files in turn, and each thread one at a time.
template <class Make>
std::vector<std::string> of_each(const Dumps& dumps, int threads, Ranks& ranks, const Progress& progress,
                                 const Make& make) {
  const Turns turns(dumps.size(), ranks);
  const std::vector<std::size_t> own = turns.of(ranks.rank());
  std::vector<std::string> mine(own.size());
  const Index at_a_time = std::max(1, threads), count = static_cast<Index>(own.size());
  for (Index first = 0; first < count; first += at_a_time) {
    ranks.look_out();
    const Index now = std::min(at_a_time, count - first);
    parallel_for(threads, now, [&](Index n) {
      const auto turn = static_cast<std::size_t>(first + n);
      mine[turn] = make(*dumps[own[turn]]);
    });
    if (progress) progress(first + now, count, fmt::format("reading {} dumps to know them by their contents", count));
  }
  ByteWriter writer;
  writer.put(mine);
  return turns.ordered(ranks.all_gather(writer.bytes()));
}

/// Bytes from all over a file. Where they differ two files do, and they cost next to nothing beside a hash.
std::string samples(const DumpReader& dump) {
  constexpr std::uintmax_t kPieces = 16, kPiece = 4096;
  const std::filesystem::path& path = dump.info().path;
  const std::uintmax_t part = std::filesystem::file_size(path) / kPieces;
  if (part < kPiece) return {};
  std::ifstream file(path, std::ios::binary);
  std::string bytes(kPieces * kPiece, '\0');
  for (std::uintmax_t n = 0; n < kPieces; ++n) {
    file.seekg(static_cast<std::streamoff>(n * part + (part - kPiece) / 2));
    file.read(bytes.data() + n * kPiece, kPiece);
  }
  if (!file) throw FileError(fmt::format("{}: cannot be read", path.string()));
  return bytes;
}

/// Those dumps whose key another one has, too.
template <class Key>
Dumps not_alone(const Dumps& dumps, const std::vector<Key>& keys) {
  std::map<Key, Dumps> by_key;
  for (std::size_t d = 0; d < dumps.size(); ++d) by_key[keys[d]].push_back(dumps[d]);
  Dumps found;
  for (const auto& [key, of_key] : by_key) {
    if (of_key.size() > 1) found.insert(found.end(), of_key.begin(), of_key.end());
  }
  return found;
}

/// Those dumps that may be the same as another one, by their sizes and samples of their bytes.
Dumps perhaps_equal(const std::vector<DumpReader>& dumps, int threads, Ranks& ranks) {
  Dumps all;
  std::vector<std::uintmax_t> sizes;
  for (const DumpReader& dump : dumps) {
    all.push_back(&dump);
    sizes.push_back(std::filesystem::file_size(dump.info().path));
  }
  const Dumps same_size = not_alone(all, sizes);
  return not_alone(same_size, of_each(same_size, threads, ranks, {}, samples));
}

}  // namespace

std::vector<std::string> content_hashes(const Dumps& dumps, int threads, Ranks& ranks, const Progress& progress) {
  std::vector<std::string> all =
      of_each(dumps, threads, ranks, progress, [](const DumpReader& dump) { return dump.content_hash(); });
  for (std::size_t dump = 0; dump < dumps.size(); ++dump) dumps[dump]->learn_hash(all[dump]);
  return all;
}

void check_distinct(const std::vector<DumpReader>& dumps, int threads, Ranks& ranks, const Progress& progress) {
  const Dumps suspects = perhaps_equal(dumps, threads, ranks);
  const std::vector<std::string> hashes = content_hashes(suspects, threads, ranks, progress);
  std::map<std::string, std::string> path_of;
  for (std::size_t d = 0; d < suspects.size(); ++d) {
    const std::string path = suspects[d]->info().path.string();
    const auto [other, is_new] = path_of.try_emplace(hashes[d], path);
    if (is_new) continue;
    throw UsageError(
        fmt::format("{}: is the same dump as {} (SHA-256 {}), which would count as two samples; give it "
                    "once",
                    path, other->second, other->first));
  }
}

}  // namespace laprox
