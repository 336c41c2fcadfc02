#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/allocator.h"
#include "laprox/scorer.h"

namespace laprox {

/// A policy: a score and a budget split, with every option resolved.
struct Policy {
  std::string scorer_name, allocator_name;
  Options scorer_options, allocator_options;
  std::string label;  ///< as the user wrote it: its name in tables and reports
  std::shared_ptr<const Scorer> scorer;
  std::shared_ptr<const Allocator> allocator;

  bool operator==(const Policy& other) const {
    return scorer_name == other.scorer_name && allocator_name == other.allocator_name &&
           scorer_options == other.scorer_options && allocator_options == other.allocator_options;
  }
};

/// Reads `scorer[+allocator][:key=value,...]`, for example "snapkv", "snapkv+ada:floor=0.2",
/// "laprox+global:normalize=false". Throws UsageError: unknown names (with the nearest known one), options out of
/// range, combinations that make no sense.
Policy parse_policy(std::string_view text);

/// A policy with a scorer of the caller's own, which no registry knows: `text` is "name[+allocator][:key=value,...]",
/// where the options are the allocator's. Throws UsageError as parse_policy does.
Policy compose_policy(std::string_view text, std::shared_ptr<const Scorer> scorer,
                      const std::string& default_allocator = "head");

/// The policy with every option spelled out; parse_policy reads it back.
std::string to_string(const Policy& policy);

/// Splits "snapkv,laprox:gqa=frobenius,pool=max,h2o" into its three policies: a part with '=' but no ':' continues the
/// one before.
std::vector<std::string> split_policies(std::string_view list);

}  // namespace laprox
