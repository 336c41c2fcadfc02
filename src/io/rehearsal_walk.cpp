#include "io/rehearsal_walk.h"

#include <hdf5.h>
#include <hdf5_hl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "io/chunk_check.h"
#include "io/file_state.h"

namespace laprox::io {

namespace {

constexpr unsigned kSeconds = 15;  // longer than any sound file's structure takes, even on a slow disk
constexpr rlim_t kCpuSeconds = 5;
constexpr rlim_t kMemory = rlim_t{512} << 20;  // beyond what the parent holds already; allow_memory() may raise it
constexpr rlim_t kMemoryPerByte = 16;          // of the file: what its structure can take when it is unpacked
constexpr rlim_t kMostMemory = rlim_t{4} << 30;
constexpr hsize_t kSmall = hsize_t{1} << 20;  // bytes of an attribute or dataset that is read whole, as the parent will

bool out_of_memory = false;

/// Called by HDF5 for every call that fails. Failures are the parent's to report, but what fails here for want of
/// memory would take all that the machine has there.
herr_t note_failure(hid_t stack, void*) {
  const auto look = [](unsigned, const H5E_error2_t* error, void*) -> herr_t {
    out_of_memory = out_of_memory || (error->maj_num == H5E_RESOURCE && error->min_num == H5E_NOSPACE);
    return 0;
  };
  return H5Ewalk2(stack, H5E_WALK_UPWARD, look, nullptr);
}

/// Lets the process hold so many bytes more than it does. What it holds already includes the stacks of the parent's
/// threads, which are mapped here too.
void limit_memory([[maybe_unused]] rlim_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)  // which maps memory of its own
  std::ifstream sizes("/proc/self/statm");
  rlim_t total = 0, resident = 0, shared = 0, text = 0, library = 0, data = 0;
  if (!(sizes >> total >> resident >> shared >> text >> library >> data)) return;
  rlimit limit{};
  getrlimit(RLIMIT_DATA, &limit);
  limit.rlim_cur = std::min(limit.rlim_max, data * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + bytes);
  setrlimit(RLIMIT_DATA, &limit);
#endif
}

void allow_memory(rlim_t bytes) {
  rlimit limit{};
  getrlimit(RLIMIT_DATA, &limit);
  limit.rlim_cur = limit.rlim_max - limit.rlim_cur > bytes ? limit.rlim_cur + bytes : limit.rlim_max;
  setrlimit(RLIMIT_DATA, &limit);
}

/// What the parent will read of one attribute; failures are the parent's to report.
herr_t visit_attribute(hid_t owner, const char* name, const H5A_info_t*, void*) {
  const hid_t attribute = H5Aopen(owner, name, H5P_DEFAULT);
  if (attribute < 0) return 0;
  const hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  const std::size_t size = H5Tget_size(type);
  if (count > 0 && size > 0 && static_cast<hsize_t>(count) < kSmall && size < kSmall) {
    std::vector<char> values(static_cast<std::size_t>(count) * size);
    if (H5Aread(attribute, type, values.data()) >= 0) H5Dvlen_reclaim(type, space, H5P_DEFAULT, values.data());
  }
  H5Sclose(space);
  H5Tclose(type);
  H5Aclose(attribute);
  return 0;
}

/// Lets the child work longer: a second more for so many bytes that it unpacks.
void allow_for(double bytes) {
  constexpr double kBytesPerSecond = 16e6;  // of the slowest filter
  const auto seconds = static_cast<unsigned>(bytes / kBytesPerSecond);
  rlimit cpu{};
  getrlimit(RLIMIT_CPU, &cpu);
  cpu.rlim_cur += seconds;
  setrlimit(RLIMIT_CPU, &cpu);
  alarm(alarm(0) + seconds);
}

/// Reads every chunk, as the parent will: a filter's own code can crash on damaged data.
void unpack_chunks(hid_t dataset, hid_t type, hid_t space, hid_t properties, hsize_t chunks) {
  const auto rank = static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space)));
  std::vector<hsize_t> shape(rank), block(rank), offset(rank), count(rank);
  H5Sget_simple_extent_dims(space, shape.data(), nullptr);
  if (H5Pget_chunk(properties, static_cast<int>(rank), block.data()) < 0) return;
  double bytes = static_cast<double>(H5Tget_size(type));
  for (const hsize_t extent : block) bytes *= static_cast<double>(extent);
  if (bytes > static_cast<double>(kMostMemory)) return;  // which the parent refuses by the size of the file
  constexpr rlim_t copies = 3;                           // the values, and before and after a filter
  allow_memory(copies * static_cast<rlim_t>(bytes));
  void* values = std::malloc(static_cast<std::size_t>(bytes));
  for (hsize_t i = 0; values && i < chunks; ++i) {
    unsigned mask = 0;
    haddr_t address = 0;
    hsize_t size = 0;
    if (H5Dget_chunk_info(dataset, space, i, offset.data(), &mask, &address, &size) < 0) break;
    bool inside = true;
    for (std::size_t d = 0; d < rank; ++d) {
      inside = inside && offset[d] < shape[d];
      count[d] = inside ? std::min(block[d], shape[d] - offset[d]) : 0;
    }
    if (!inside) break;
    allow_for(bytes);
    const hid_t memory = H5Screate_simple(static_cast<int>(rank), count.data(), nullptr);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, offset.data(), nullptr, count.data(), nullptr);
    H5Dread(dataset, type, memory, space, H5P_DEFAULT, values);
    H5Sselect_all(space);
    H5Sclose(memory);
  }
  std::free(values);
}

void read_whole(hid_t dataset, hid_t type, hid_t space, hssize_t count, std::size_t size) {
  std::vector<char> values(static_cast<std::size_t>(count) * size);
  if (H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0) {
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, values.data());
  }
}

/// Chunks of numbers whose filters the parent undoes itself, to look at their sizes, are not unpacked here.
void visit_values(hid_t dataset, hid_t type, hid_t space, hid_t properties) {
  const H5T_class_t kind = H5Tget_class(type);
  const H5D_layout_t layout = H5Pget_layout(properties);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  const std::size_t size = H5Tget_size(type);
  if (layout == H5D_VIRTUAL || count <= 0 || size == 0) return;
  if (layout == H5D_CHUNKED && (kind == H5T_INTEGER || kind == H5T_FLOAT)) {
    hsize_t chunks = 0;
    if (H5Dget_num_chunks(dataset, space, &chunks) < 0 || chunks == 0) return;
    std::vector<hsize_t> offset(H5S_MAX_RANK);
    unsigned mask = 0;
    haddr_t address = 0;
    hsize_t length = 0;
    H5Dget_chunk_info(dataset, space, chunks - 1, offset.data(), &mask, &address, &length);
    if (!size_is_known(filters_of(properties))) unpack_chunks(dataset, type, space, properties, chunks);
  } else if (static_cast<hsize_t>(count) < kSmall / size) {
    read_whole(dataset, type, space, count, size);
  }
}

void visit_dataset(hid_t dataset) {
  const hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset), properties = H5Dget_create_plist(dataset);
  visit_values(dataset, type, space, properties);
  const auto name = [](hid_t, unsigned, hid_t scale, void*) -> herr_t {
    char buffer[64] = {};
    H5DSget_scale_name(scale, buffer, sizeof buffer);
    return 0;
  };
  for (int i = 0; i < H5Sget_simple_extent_ndims(space); ++i) {
    H5DSiterate_scales(dataset, static_cast<unsigned>(i), nullptr, name, nullptr);
  }
  H5Pclose(properties);
  H5Sclose(space);
  H5Tclose(type);
}

/// By their numbers, as the parent opens them: HDF5 may find one by its name that it cannot open by its number, and
/// crash when the file is closed after that.
void number_attributes(hid_t object) {
  for (int i = 0; i < H5Aget_num_attrs(object); ++i) {
    const hid_t attribute =
        H5Aopen_by_idx(object, ".", H5_INDEX_CRT_ORDER, H5_ITER_INC, static_cast<hsize_t>(i), H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0) return;
    H5Aclose(attribute);
  }
}

herr_t visit_object(hid_t root, const char* name, const H5O_info_t* info, void*) {
  const hid_t object = H5Oopen(root, name, H5P_DEFAULT);
  if (object < 0) return 0;
  H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, visit_attribute, nullptr);
  number_attributes(object);
  if (info->type == H5O_TYPE_DATASET) visit_dataset(object);
  H5Oclose(object);
  return 0;
}

/// What this file may take. The child may have walked others before.
void set_limits(const char* path) {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  rlimit cpu{};
  getrlimit(RLIMIT_CPU, &cpu);
  const auto seconds = static_cast<rlim_t>(used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1) + kCpuSeconds;
  cpu.rlim_cur = std::min(cpu.rlim_max, seconds);  // SIGXCPU ends the child; allow_for() may raise it
  setrlimit(RLIMIT_CPU, &cpu);
  const auto file = regular_file(path);
  limit_memory(std::min(kMostMemory, kMemory + kMemoryPerByte * (file ? file->size : 0)));
  alarm(kSeconds);
}

}  // namespace

bool walk_file(const char* path) {
  set_limits(path);
  out_of_memory = false;
  H5Eset_auto2(H5E_DEFAULT, note_failure, nullptr);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file >= 0) {
    H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_NATIVE, visit_object, nullptr, H5O_INFO_BASIC);
    H5Fclose(file);  // frees what the walk has cached, as it will be freed in the parent
  }
  return !out_of_memory;
}

}  // namespace laprox::io
