#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// One option of a scorer or an allocator, declared once: parsing, validation, help and the report all read this.
struct OptionSpec {
  enum class Kind { integer, real, boolean, choice, numbers };
  std::string name;  ///< kebab-case; users may write _ for -
  Kind kind = Kind::integer;
  std::string fallback;                   ///< the default, as text
  double minimum = 0, maximum = 0;        ///< of integer, real and numbers, inclusive
  std::vector<std::string> choices = {};  ///< of choice
  std::string help;

  static OptionSpec integer(std::string name, Index fallback, Index minimum, Index maximum, std::string help);
  static OptionSpec real(std::string name, double fallback, double minimum, double maximum, std::string help);
  static OptionSpec boolean(std::string name, bool fallback, std::string help);
  static OptionSpec choice(std::string name, std::string fallback, std::vector<std::string> choices, std::string help);
  /// One number or several: "2/1/0.5".
  static OptionSpec numbers(std::string name, std::string fallback, double minimum, double maximum, std::string help);
};

/// The validated options of one part of a policy; every declared option has a value.
class Options {
 public:
  Options() = default;
  explicit Options(const std::vector<OptionSpec>& specs);

  /// Throws UsageError, naming `owner` and the allowed values, where `value` does not fit the option's declaration.
  void set(const OptionSpec& spec, std::string_view value, std::string_view owner);

  /// Gives a declared option the value that other options imply, in its canonical spelling.
  void settle(std::string_view name, std::string value);

  /// Throw Bug where no such option was declared.
  Index integer(std::string_view name) const;
  double real(std::string_view name) const;
  bool boolean(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  std::vector<double> numbers(std::string_view name) const;
  /// Whether the user gave the option, rather than its declaration.
  bool given(std::string_view name) const;

  /// name=value pairs in the order of declaration, every option spelled out.
  std::vector<std::pair<std::string, std::string>> spelled_out() const;
  bool operator==(const Options& other) const { return values_ == other.values_; }

 private:
  std::vector<std::string> order_;
  std::map<std::string, std::string, std::less<>> values_;
  std::vector<std::string> given_;
};

}  // namespace laprox
