#include "laprox/synth.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cerrno>
#include <cstdlib>

#include "arguments.h"
#include "commands.h"
#include "laprox/error.h"
#include "output.h"
#include "progress.h"

namespace laprox::cli {

namespace {

/// What the user gave; what was not given comes from the preset.
struct SynthArguments {
  std::string output, preset, queries, adversarial, type = "float16";
  Index tokens = 1024, decode = 64;
  std::optional<Index> layers, query_heads, kv_heads, head_size, value_size, model_size, sliding_window;
  std::optional<double> softcap;
  std::uint64_t seed = 0;
  int gzip = 0;
  bool sinks = false, bias = false, force = false, quiet = false;
};

/// CLI11 would take -1 for the largest number, and a larger one too.
CLI::Validator seed() {
  const auto complaint = [](const std::string& text) {
    errno = 0;
    std::strtoull(text.c_str(), nullptr, 0);
    const bool fits = errno == 0 && text.find('-') == std::string::npos;
    return fits ? std::string() : fmt::format("expected an integer from 0 to 2^64 - 1, found '{}'", text);
  };
  return CLI::Validator(complaint, "");
}

/// Above this context length only the last queries are stored unless --queries says otherwise: q would dwarf the rest.
constexpr Index kAllQueriesUpTo = 16384;

Index recent_queries(const SynthArguments& arguments) {
  const std::string text =
      arguments.queries.empty() ? (arguments.tokens <= kAllQueriesUpTo ? "all" : "recent:64") : arguments.queries;
  if (text == "all") return 0;
  const std::string prefix = "recent:";
  char* end = nullptr;
  const long long count = text.rfind(prefix, 0) == 0 ? std::strtoll(text.c_str() + prefix.size(), &end, 10) : 0;
  if (count < 1 || *end != '\0') throw UsageError(fmt::format("--queries: expected all or recent:N, found '{}'", text));
  return static_cast<Index>(count);
}

SynthOptions options_of(const SynthArguments& arguments) {
  SynthOptions options = synth_preset(arguments.preset);
  LayerGeometry& g = options.geometry;
  options.layers = arguments.layers.value_or(options.layers);
  g = {arguments.query_heads.value_or(g.query_heads), arguments.kv_heads.value_or(g.kv_heads),
       arguments.head_size.value_or(g.head_size), arguments.value_size.value_or(g.value_size),
       arguments.model_size.value_or(g.model_size)};
  options.context_length = arguments.tokens;
  options.decoded = arguments.decode;
  options.recent_queries = recent_queries(arguments);
  options.softcap = arguments.softcap.value_or(options.softcap);
  options.sliding_window = arguments.sliding_window.value_or(options.sliding_window);
  options.sinks = options.sinks || arguments.sinks;
  options.bias = options.bias || arguments.bias;
  options.type = parse_element_type(arguments.type, "--dtype");
  options.seed = arguments.seed;
  options.gzip = arguments.gzip;
  options.adversarial = arguments.adversarial;
  return options;
}

void run_synth(const SynthArguments& arguments) {
  const SynthOptions options = options_of(arguments);
  {
    ProgressBar bar(options.layers, arguments.quiet);
    synthesize_dump(arguments.output, options, arguments.force,
                    [&](Index layer, Index, const std::string&) { bar.step(fmt::format("layer {}", layer)); });
  }
  if (arguments.quiet) return;
  note(fmt::format("{}: {} layers, {} + {} tokens, {:.3g} MB before compression", arguments.output, options.layers,
                   options.context_length, options.decoded, synth_bytes(options) / 1e6));
}

}  // namespace

void add_synth(CLI::App& app) {
  auto a = std::make_shared<SynthArguments>();
  CLI::App* command = app.add_subcommand("synth", "Write a synthetic dump of any shape, the same on every machine");
  command->add_option("-o,--output", a->output, "dump to write (HDF5)")->check(file_name())->required();
  command->add_option("--preset", a->preset, fmt::format("shape of a model: {}", fmt::join(synth_presets(), ", ")))
      ->required();
  command->add_option("--tokens", a->tokens, "context length")->capture_default_str();
  command->add_option("--decode", a->decode, "decoded tokens behind it, whose queries judge")->capture_default_str();
  command->add_option("--queries", a->queries,
                      "all, or recent:N prompt queries (default: all up to 16384 tokens, then recent:64)");
  command->add_option("--layers", a->layers, "fewer or more layers than the model has");
  command->add_option("--seed", a->seed, "of the contents")->check(seed())->capture_default_str();
  command->add_option("--dtype", a->type, "float16, bfloat16, float32 or float64")
      ->check(CLI::IsMember({"float16", "bfloat16", "float32", "float64"}))
      ->capture_default_str();
  command->add_option("--gzip", a->gzip, "level at which the dump is compressed; 0: not at all")
      ->check(CLI::Range(0, 9))
      ->capture_default_str();
  command->add_option("--query-heads", a->query_heads, "instead of the preset's");
  command->add_option("--kv-heads", a->kv_heads, "instead of the preset's");
  command->add_option("--head-size", a->head_size, "instead of the preset's");
  command->add_option("--value-size", a->value_size, "instead of the preset's");
  command->add_option("--model-size", a->model_size, "instead of the preset's");
  command->add_option("--sliding-window", a->sliding_window, "instead of the preset's; 0: none");
  command->add_option("--softcap", a->softcap, "instead of the preset's; 0: none");
  command->add_option("--adversarial", a->adversarial, "contents that break careless arithmetic: see below");
  command->add_flag("--sinks", a->sinks, "with learned sinks");
  command->add_flag("--bias", a->bias, "with an output bias");
  command->add_flag("--force", a->force, "replace an existing dump");
  command->add_flag("--quiet", a->quiet, "no progress");
  std::string kinds = "\nAdversarial kinds, to verify backends and kernels on:\n";
  for (const AdversarialKind& kind : adversarial_kinds())
    kinds += fmt::format("  {:<18} {}\n", kind.name, kind.summary);
  command->footer(kinds + R"(
The contents imitate real attention (sinks, local heads, heavy hitters, topics) so that policies differ; they are no
substitute for a real dump. mistral-7b is v0.1, with its sliding window of 4096.

Examples:
  laprox synth -o long.h5 --preset llama-3.1-8b --tokens 32768 --layers 4
  laprox synth -o small.h5 --preset tiny --tokens 500 --seed 7 --dtype float32
  laprox synth -o hard.h5 --preset tiny --tokens 500 --dtype bfloat16 --adversarial huge-logits)");
  command->callback([a] { run_synth(*a); });
}

}  // namespace laprox::cli
