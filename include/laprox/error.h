#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace laprox {

/// Base of everything the library throws on purpose. The library never prints and never exits.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The request cannot be carried out: an unknown name, an option out of range, a budget that cannot be met.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be read or written.
class FileError : public Error {
 public:
  using Error::Error;
};

/// A dump or report that breaks its format. The message names the file, the object inside it, what was expected, what
/// was found and, where there is something to do about it, what to do.
class DumpError : public FileError {
 public:
  DumpError(std::string_view file, std::string_view object, std::string_view expected, std::string_view found,
            std::string_view advice = {});
};

/// What was checked is not what it should be: a dump's self-check, or a kernel's results. The message says where.
class VerificationError : public Error {
 public:
  using Error::Error;
};

/// A backend that is unknown, unavailable, out of memory, or whose arithmetic left the range of its numbers.
class BackendError : public Error {
 public:
  using Error::Error;
};

/// A broken invariant: a bug in laprox, not a mistake of its user.
class Bug : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Throws Bug, naming the place, unless `holds`. Active in release builds too.
void require(bool holds, std::string_view invariant, std::source_location where = std::source_location::current());

}  // namespace laprox
