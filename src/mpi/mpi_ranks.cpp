#include "laprox/mpi_ranks.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace laprox {

namespace {

/// What every exchange begins with: how much each rank gives, or that it goes no further. Short gifts fit inside, so
/// that most exchanges are one call.
struct Frame {
  static constexpr std::size_t kInside = 248;
  static constexpr std::int64_t kLearntOfFailure = INT64_MIN;  ///< the rank only knows that another one failed

  std::int64_t size = 0;  ///< bytes, or minus the exit status of a rank that failed
  std::array<char, kInside> bytes = {};
};

constexpr std::size_t kPiece = std::size_t{1} << 30;  ///< of a message: MPI counts in int
constexpr int kFailed = 1, kFound = 2;                ///< tags

class MpiRanks : public Ranks {
 public:
  MpiRanks(int& argc, char**& argv) {
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm of_machine = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &of_machine);
    MPI_Comm_rank(of_machine, &rank_on_machine_);
    MPI_Comm_free(&of_machine);
  }
  ~MpiRanks() override { MPI_Finalize(); }
  MpiRanks(const MpiRanks&) = delete;
  MpiRanks& operator=(const MpiRanks&) = delete;

  Index rank() const override { return rank_; }
  Index size() const override { return size_; }
  Index rank_on_machine() const override { return rank_on_machine_; }

  std::vector<std::string> all_gather(const std::string& bytes) override {
    const std::vector<Frame> frames = exchange(frame_of(bytes));
    if (fit_inside(frames)) return insides(frames);
    std::vector<int> counts, starts;
    std::size_t total = 0;
    for (const Frame& frame : frames) {
      starts.push_back(static_cast<int>(total));
      counts.push_back(static_cast<int>(frame.size));
      total += static_cast<std::size_t>(frame.size);
      require(total <= INT_MAX, "what all ranks must know is less than 2 GiB");
    }
    std::string all(total, '\0');
    exchange({});  // everyone has the memory
    MPI_Allgatherv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, all.data(), counts.data(), starts.data(),
                   MPI_BYTE, MPI_COMM_WORLD);
    std::vector<std::string> result;
    for (std::size_t rank = 0; rank < frames.size(); ++rank) {
      result.push_back(all.substr(static_cast<std::size_t>(starts[rank]), static_cast<std::size_t>(counts[rank])));
    }
    return result;
  }

  std::vector<std::string> gather(const std::string& bytes) override {
    const std::vector<Frame> frames = exchange(frame_of(bytes));
    std::vector<std::string> result;
    if (fit_inside(frames)) return is_first() ? insides(frames) : result;
    for (std::size_t rank = 0; rank < frames.size() && is_first(); ++rank) {
      result.emplace_back(static_cast<std::size_t>(frames[rank].size), '\0');
    }
    exchange({});  // the first rank has the memory
    if (!is_first()) {
      for_each_piece(bytes.size(), [&](std::size_t first, int count) {
        MPI_Send(bytes.data() + first, count, MPI_BYTE, 0, kFound, MPI_COMM_WORLD);
      });
      return result;
    }
    result[0] = bytes;
    for (int rank = 1; rank < size_; ++rank) {
      std::string& theirs = result[rank];
      for_each_piece(theirs.size(), [&](std::size_t first, int count) {
        MPI_Recv(theirs.data() + first, count, MPI_BYTE, rank, kFound, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      });
    }
    return result;
  }

  void look_out() override {
    int failed = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, kFailed, MPI_COMM_WORLD, &failed, MPI_STATUS_IGNORE);
    if (!failed) return;
    has_learnt_ = true;
    throw RankFailed({});
  }

  std::optional<Failure> conclude(int status) override {
    if (failure_) return failure_;
    Frame frame;
    frame.size = has_learnt_ ? Frame::kLearntOfFailure : -std::int64_t{status};
    if (frame.size < 0 && !has_learnt_) tell_others();
    try {
      exchange(frame);
    } catch (const RankFailed&) {  // failure_ says which
    }
    return failure_;
  }

 private:
  static Frame frame_of(const std::string& bytes) {
    Frame frame;
    frame.size = static_cast<std::int64_t>(bytes.size());
    std::memcpy(frame.bytes.data(), bytes.data(), std::min(bytes.size(), Frame::kInside));
    return frame;
  }

  static bool fit_inside(const std::vector<Frame>& frames) {
    return std::all_of(frames.begin(), frames.end(),
                       [](const Frame& frame) { return frame.size <= static_cast<std::int64_t>(Frame::kInside); });
  }

  static std::vector<std::string> insides(const std::vector<Frame>& frames) {
    std::vector<std::string> result;
    for (const Frame& frame : frames) result.emplace_back(frame.bytes.data(), static_cast<std::size_t>(frame.size));
    return result;
  }

  template <class Visit>
  static void for_each_piece(std::size_t size, const Visit& visit) {
    for (std::size_t first = 0; first < size; first += kPiece) {
      visit(first, static_cast<int>(std::min(kPiece, size - first)));
    }
  }

  /// For look_out: a word to every other rank.
  void tell_others() {
    for (int rank = 0; rank < size_; ++rank) {
      if (rank == rank_) continue;
      MPI_Isend(nullptr, 0, MPI_BYTE, rank, kFailed, MPI_COMM_WORLD, &told_.emplace_back());
    }
  }

  /// [rank]. Throws RankFailed on every rank where any has failed.
  std::vector<Frame> exchange(const Frame& mine) {
    std::vector<Frame> frames(static_cast<std::size_t>(size_));
    MPI_Allgather(&mine, sizeof(Frame), MPI_BYTE, frames.data(), sizeof(Frame), MPI_BYTE, MPI_COMM_WORLD);
    for (int rank = 0; rank < size_; ++rank) {
      const std::int64_t size = frames[rank].size;
      if (size >= 0 || size == Frame::kLearntOfFailure) continue;
      if (!failure_) failure_ = Failure{rank, static_cast<int>(-size)};
      // Its word to this rank is taken, whether or not look_out saw it.
      if (rank != rank_) MPI_Recv(nullptr, 0, MPI_BYTE, rank, kFailed, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Waitall(static_cast<int>(told_.size()), told_.data(), MPI_STATUSES_IGNORE);
    told_.clear();
    if (failure_) throw RankFailed(*failure_);
    return frames;
  }

  int rank_ = 0, size_ = 1, rank_on_machine_ = 0;
  std::vector<MPI_Request> told_;
  bool has_learnt_ = false;  ///< that another rank failed, before an exchange said so
  std::optional<Failure> failure_;
};

/// Whether a launcher started this process, which all tell it by variables. To initialise MPI without one takes half a
/// second, and where only a batch system may start MPI it fails.
bool was_launched() {
  const auto names = {
      "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",    "PMI_RANK",    "PMIX_RANK", "SLURM_PROCID", "MPI_LOCALNRANKS",
      "MV2_COMM_WORLD_SIZE",  "PALS_RANKID", "ALPS_APP_PE", "LAPROX_MPI"};
  return std::any_of(names.begin(), names.end(), [](const char* name) { return std::getenv(name) != nullptr; });
}

}  // namespace

std::unique_ptr<Ranks> make_mpi_ranks(int& argc, char**& argv) {
  if (!was_launched()) return std::make_unique<SingleRank>();
  return std::make_unique<MpiRanks>(argc, argv);
}

}  // namespace laprox
