// Blocks of tensors on their way from ranks to a file and back.
#include "core/train/weights_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <span>

#include "core/checkpoint/save_plan.h"
#include "data/hdf5_file.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {
namespace {

constexpr int64_t kBlockBytes = int64_t{64} << 20;

/// `device`'s shape and dtype over `host`, which becomes large enough.
Tensor host_tensor(std::vector<uint8_t>& host, const Shape& shape, DType dtype) {
  const int64_t bytes = shape.numel() * dtype_bytes(dtype);
  host.resize(static_cast<size_t>(std::max<int64_t>(bytes, std::ssize(host))));
  return {host.data(), shape, dtype, Device::cpu};
}

/// One rank's side of writing: it gives the blocks it has, and rank 0 puts them into the file.
class WeightsWriter {
 public:
  WeightsWriter(const WeightsSource& source, Hdf5File* file)
      : source_(source),
        file_(file),
        dtype_(accumulator_dtype(source.store.dtype())),
        table_(pieces_of(source.shards), source.world) {
    for (size_t i = 0; i < source.shards.size(); ++i)
      shard_of_[table_.find(piece_of(source.shards[i]))] = i;
  }

  void write_all() {
    // Planned as a whole first, so that a gap is known before anything is written.
    const std::vector<PlannedBlock> plan = plan_save(table_);
    const std::string* before = nullptr;
    for (const PlannedBlock& planned : plan) {
      const Piece& piece = table_.entries()[static_cast<size_t>(planned.entry)].piece;
      if (file_ != nullptr && (before == nullptr || *before != piece.name))
        file_->create_dataset(piece.name, piece.global_shape, dtype_);
      before = &piece.name;
      const int64_t step =
          std::max<int64_t>(1, kBlockBytes / (piece.size[1] * dtype_bytes(dtype_)));
      for (int64_t row = planned.row_begin; row < planned.row_end; row += step)
        write({planned.entry, planned.rank, row, std::min(row + step, planned.row_end)});
    }
  }

 private:
  // All ranks call `exchange`, those between which nothing goes with nothing to say.
  void write(const PlannedBlock& block) {
    const int self = source_.world.rank();
    if (self != 0 && self != block.rank) {
      if (block.rank != 0) source_.world.exchange({});
      return;
    }
    const Piece& piece = table_.entries()[static_cast<size_t>(block.entry)].piece;
    const int64_t rows = block.row_end - block.row_begin;
    const bool matrix = piece.global_shape.rank() == 2;
    const Shape shape = matrix ? Shape{rows, piece.size[1]} : Shape{rows};
    const Tensor host = host_tensor(host_, shape, dtype_);
    if (self == block.rank) {
      const Tensor& master = source_.shards[shard_of_.at(block.entry)].master;
      const int64_t begin = block.row_begin - piece.offset[0];
      source_.backend.download(host.data, master.slice(begin, begin + rows));
    }
    if (block.rank != 0) send_to_first(block.rank, host);
    const std::array<int64_t, 2> first{block.row_begin, piece.offset[1]};
    if (file_ != nullptr)
      file_->write_block(piece.name, std::span(first).first(matrix ? 2 : 1), host);
  }

  void send_to_first(int rank, const Tensor& host) {
    const bool sends = source_.world.rank() == rank;
    const Exchange message{.peer = sends ? 0 : rank,
                           .send = sends ? host : Tensor{},
                           .receive = sends ? Tensor{} : host};
    source_.world.exchange(std::span(&message, 1));
  }

  const WeightsSource& source_;
  Hdf5File* file_;  // null but on rank 0
  DType dtype_;
  PieceTable table_;
  std::map<int64_t, size_t> shard_of_;  // entry of the table -> own shard
  std::vector<uint8_t> host_;           // one block
};

/// Everything by which `file` is not the weights of the model that the ranks of `table` hold
/// together, one line each; empty if it is.
std::string find_differences(const Hdf5File& file, const PieceTable& table) {
  const std::vector<std::string> list = file.datasets();
  std::set<std::string> unexpected(list.begin(), list.end());
  std::string problems;
  const std::string* before = nullptr;
  for (const PieceTable::Entry& entry : table.entries()) {
    const auto& [name, global_shape, offset, size] = entry.piece;
    if (before != nullptr && *before == name) continue;
    before = &name;
    if (unexpected.erase(name) == 0) {
      problems += fmt::format("\n  missing: {} {}", name, global_shape.to_string());
      continue;
    }
    const Shape shape = file.shape(name);
    const DType dtype = file.dtype(name);
    if (!(shape == global_shape) || (dtype != DType::f32 && dtype != DType::f64))
      problems += fmt::format("\n  {} is {} {}, expected {} f32 or f64", name, shape.to_string(),
                              dtype_name(dtype), global_shape.to_string());
  }
  for (const std::string& name : unexpected) problems += "\n  unexpected: " + name;
  return problems;
}

void read_pieces(const Hdf5File& file, ParameterStore& store, Backend& backend) {
  int64_t largest = 0;
  for (int64_t i = 0; i < store.size(); ++i) largest = std::max(largest, store[i].numel());
  const auto staging = backend.allocate(largest * dtype_bytes(DType::f64));
  std::vector<uint8_t> host;
  for (int64_t i = 0; i < store.size(); ++i) {
    const Parameter& parameter = store[i];
    const std::string& name = parameter.spec.name;
    const Tensor block = host_tensor(host, parameter.shape, file.dtype(name));
    const auto dims = static_cast<size_t>(parameter.shape.rank());
    file.read_block(name, std::span(parameter.offset).first(dims), block);
    const Tensor device{staging.get(), block.shape, block.dtype, backend.device()};
    backend.upload(device, block.data);
    backend.copy(parameter.value, device);
  }
}

}  // namespace

void save_weights(const std::string& path, const WeightsInfo& info, const WeightsSource& source) {
  const FlightRange saving(flight_entry(FlightKind::phase, "write weights"));
  std::optional<Hdf5File> file;
  if (source.world.rank() == 0) {
    file.emplace(Hdf5File::create(path));
    write_weights_info(*file, info);
  }
  WeightsWriter(source, file ? &*file : nullptr).write_all();
  if (file) file->publish();
  source.world.barrier();  // nobody reports success before the file is there
}

WeightsInfo load_weights(const std::string& path, const std::string& tokenizer_hash,
                         ParameterStore& store, Backend& backend, ProcessGroup& world) {
  const FlightRange loading(flight_entry(FlightKind::phase, "read weights"));
  const Hdf5File file = Hdf5File::open(path);
  WeightsInfo info = read_weights_info(file, path);
  check_usage(tokenizer_hash.empty() || info.tokenizer_hash == tokenizer_hash, path,
              " was trained with another tokenizer (hash ", info.tokenizer_hash, ", here ",
              tokenizer_hash, "); give the tokenizer options of that run");
  const std::string problems = find_differences(file, PieceTable(pieces_of(store), world));
  check_usage(problems.empty(), path, " does not fit the model:", problems,
              "\nUse the model options of the run that wrote it");
  read_pieces(file, store, backend);
  return info;
}

}  // namespace phalanx
