#include "io/output_driver.h"

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>

namespace laprox::io {

namespace {

std::atomic<int> first_failure{0};

void remember_failure() {
  int none = 0;
  first_failure.compare_exchange_strong(none, errno ? errno : EIO);
}

struct OutputDriver {
  H5FD_t base;  // HDF5's part comes first
  int file;
  haddr_t allocated, end;
};

OutputDriver* mine(H5FD_t* driver) { return reinterpret_cast<OutputDriver*>(driver); }
const OutputDriver* mine(const H5FD_t* driver) { return reinterpret_cast<const OutputDriver*>(driver); }

H5FD_t* open_output(const char* name, unsigned, hid_t, haddr_t) {
  const int file = ::open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return nullptr;
  return &(new OutputDriver{{}, file, 0, 0})->base;
}

herr_t close_output(H5FD_t* driver) {
  if (close(mine(driver)->file) != 0) remember_failure();
  delete mine(driver);
  return 0;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t allocated(const H5FD_t* driver, H5FD_mem_t) { return mine(driver)->allocated; }
herr_t allocate(H5FD_t* driver, H5FD_mem_t, haddr_t to) {
  mine(driver)->allocated = to;
  return 0;
}
haddr_t end_of_file(const H5FD_t* driver, H5FD_mem_t) { return mine(driver)->end; }

/// What lies behind the end reads as zeros, as HDF5 expects it.
herr_t read_output(H5FD_t* driver, H5FD_mem_t, hid_t, haddr_t at, size_t size, void* target) {
  auto* bytes = static_cast<char*>(target);
  while (size > 0) {
    const ssize_t count = pread(mine(driver)->file, bytes, size, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return -1;
    if (count == 0) break;
    bytes += count, at += static_cast<haddr_t>(count), size -= static_cast<size_t>(count);
  }
  std::memset(bytes, 0, size);
  return 0;
}

herr_t write_output(H5FD_t* driver, H5FD_mem_t, hid_t, haddr_t at, size_t size, const void* source) {
  const auto* bytes = static_cast<const char*>(source);
  mine(driver)->end = std::max(mine(driver)->end, at + size);
  while (size > 0 && first_failure == 0) {
    errno = 0;
    const ssize_t count = pwrite(mine(driver)->file, bytes, size, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      remember_failure();
      break;
    }
    bytes += count, at += static_cast<haddr_t>(count), size -= static_cast<size_t>(count);
  }
  return 0;
}

herr_t truncate_output(H5FD_t* driver, hid_t, hbool_t) {
  OutputDriver* output = mine(driver);
  if (output->allocated == output->end) return 0;
  if (ftruncate(output->file, static_cast<off_t>(output->allocated)) != 0) remember_failure();
  output->end = output->allocated;
  return 0;
}

hid_t driver_id() {
  static const hid_t id = [] {
    static H5FD_class_t driver{};
#ifdef H5FD_CLASS_VERSION
    driver.version = H5FD_CLASS_VERSION;
    driver.value = static_cast<H5FD_class_value_t>(600);  // of those that HDF5 leaves to others
#endif
    driver.name = "laprox-output";
    driver.maxaddr = static_cast<haddr_t>(std::numeric_limits<off_t>::max());
    driver.fc_degree = H5F_CLOSE_WEAK;
    driver.open = open_output;
    driver.close = close_output;
    driver.query = query;
    driver.get_eoa = allocated;
    driver.set_eoa = allocate;
    driver.get_eof = end_of_file;
    driver.read = read_output;
    driver.write = write_output;
    driver.truncate = truncate_output;
    const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), driver.fl_map);
    return H5FDregister(&driver);
  }();
  return id;
}

}  // namespace

H5::FileAccPropList output_access() {
  H5::FileAccPropList access;
  if (H5Pset_driver(access.getId(), driver_id(), nullptr) < 0) {
    throw H5::PropListIException("H5Pset_driver", "the driver of outputs cannot be set");
  }
  return access;
}

int failed_write() { return first_failure; }
void begin_output() { first_failure = 0; }

}  // namespace laprox::io
