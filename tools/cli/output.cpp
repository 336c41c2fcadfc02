#include "output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "laprox/names.h"

namespace laprox::cli {

namespace {

bool is_loud = true;

}  // namespace

void speak(bool loud) { is_loud = loud; }

void occupy_standard_streams() {
  // open() gives the smallest free number. Standard output is opened for reading, so that writing to it fails still.
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) != -1) continue;
    if (open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY) != stream) return;
  }
}

void out(const std::string& text) { out_as_it_is(printable(text)); }

void out_as_it_is(const std::string& text) {
  if (is_loud) std::fwrite(text.data(), 1, text.size(), stdout);
}

bool output_failed() { return std::fflush(stdout) != 0 || std::ferror(stdout) != 0; }

void note(const std::string& line) {
  if (!is_loud) return;
  const std::string shown = printable(line);
  std::fwrite(shown.data(), 1, shown.size(), stderr);
  std::fputc('\n', stderr);
}

}  // namespace laprox::cli
