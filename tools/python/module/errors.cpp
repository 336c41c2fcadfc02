#include <cstring>
#include <exception>

#include "laprox/error.h"
#include "module.h"

namespace laprox::python {

namespace {

/// Raises the exception of that name of laprox._errors, where all of them are defined. The library's messages name the
/// options of the command line, and Python's callers have arguments.
void raise(const char* name, const char* message) {
  const nb::module_ errors = nb::module_::import_("laprox._errors");
  const auto size = static_cast<Py_ssize_t>(std::strlen(message));
  const nb::object text = nb::steal(PyUnicode_DecodeUTF8(message, size, "backslashreplace"));
  PyErr_SetObject(nb::object(errors.attr(name)).ptr(), nb::object(errors.attr("reworded")(text)).ptr());
}

/// From the most derived class to its bases.
void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const UsageError& error) {
    raise("UsageError", error.what());
  } catch (const DumpError& error) {
    raise("DumpError", error.what());
  } catch (const FileError& error) {
    raise("FileError", error.what());
  } catch (const VerificationError& error) {
    raise("VerificationError", error.what());
  } catch (const BackendError& error) {
    raise("BackendError", error.what());
  } catch (const Error& error) {
    raise("Error", error.what());
  } catch (const Bug& error) {
    raise("Bug", error.what());
  }
}

}  // namespace

void add_errors(nb::module_&) { nb::register_exception_translator(translate); }

}  // namespace laprox::python
