/* Preloaded into the program under test: one system call on files that are being written (their names end in .part) fails with EIO
 * after FAULT_AFTER calls went well, once or from then on (FAULT_LASTING). The file FAULT_SEEN appears where it came to that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_output(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path);
  return length > 5 && memcmp(path + length - 5, ".part", 5) == 0;
}

static int fails(const char *call, int concerned) {
  static int calls = 0;
  const char *wanted = getenv("FAULT_CALL"), *after = getenv("FAULT_AFTER"), *seen = getenv("FAULT_SEEN");
  if (!wanted || !after || !seen || strcmp(wanted, call) != 0 || !concerned) return 0;
  const int number = calls++, limit = atoi(after);
  if (number < limit || (number > limit && !getenv("FAULT_LASTING"))) return 0;
  const int mark = open(seen, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  typedef int (*close_call)(int);
  if (mark >= 0) ((close_call)dlsym(RTLD_NEXT, "close"))(mark);
  errno = EIO;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size) {
  return fails("write", is_output(file)) ? -1 : REAL(write)(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  return fails("write", is_output(file)) ? -1 : REAL(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  return fails("write", is_output(file)) ? -1 : REAL(pwrite64)(file, data, size, at);
}
int ftruncate(int file, off_t size) { return fails("ftruncate", is_output(file)) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return fails("ftruncate", is_output(file)) ? -1 : REAL(ftruncate64)(file, size); }
int fsync(int file) { return fails("fsync", is_output(file)) ? -1 : REAL(fsync)(file); }
int close(int file) {
  const int fault = fails("close", is_output(file));
  const int result = REAL(close)(file);
  if (!fault) return result;
  errno = EIO; /* as Linux does it: the number is free all the same */
  return -1;
}
int rename(const char *from, const char *to) {
  return fails("rename", strstr(from, ".part") != NULL) ? -1 : REAL(rename)(from, to);
}
