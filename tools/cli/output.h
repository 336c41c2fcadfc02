#pragma once

#include <string>

namespace laprox::cli {

/// Makes sure that the standard streams' numbers are taken, so that no file that is opened later gets one of them: a
/// message for a closed standard error would otherwise be written into a report.
void occupy_standard_streams();

/// Whether this process says anything at all, as it does at first. Of several that work together one does.
void speak(bool loud);

/// Writes to standard output, control characters escaped. A failure is remembered by the stream; output_failed() tells.
void out(const std::string& text);
/// The same for JSON, which has escapes of its own.
void out_as_it_is(const std::string& text);
/// Flushes standard output; true where anything written to it was lost.
bool output_failed();

/// Writes a line to standard error, control characters escaped. A failure is of no consequence: there is nowhere left
/// to say so.
void note(const std::string& line);

}  // namespace laprox::cli
