// What is read from whom, from the mask's own rules.
#include "core/model/context_plan.h"

#include <algorithm>

#include "parallel/context_parallel.h"

namespace phalanx {
namespace {

/// Appends `range`, joined to the last one where they meet or overlap.
void append(std::vector<PositionRange>& ranges, PositionRange range) {
  if (range.size() == 0) return;
  if (!ranges.empty() && range.begin <= ranges.back().end)
    ranges.back().end = std::max(ranges.back().end, range.end);
  else
    ranges.push_back(range);
}

PositionRange intersection(const PositionRange& a, const PositionRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

/// True if a query in `queries` sees originals of pattern block `key`. For one key block, the
/// nearest query block sees it if any does.
bool block_read(const AttentionMask& mask, std::span<const PositionRange> queries, int64_t key) {
  return std::any_of(queries.begin(), queries.end(), [&](const PositionRange& range) {
    const int64_t nearest = std::max(range.begin / mask.block, key);
    return nearest <= (range.end - 1) / mask.block && mask.block_visible(nearest, key);
  });
}

std::vector<PositionRange> originals_read(const AttentionMask& mask,
                                          std::span<const PositionRange> queries,
                                          std::span<const PositionRange> held) {
  std::vector<PositionRange> read;
  const int64_t end = queries.back().end;  // causal: nothing after the last query
  for (PositionRange range : held) {
    range.end = std::min(range.end, end);
    if (mask.pattern == KeyPattern::full) append(read, range);
    if (mask.pattern == KeyPattern::full || range.size() == 0) continue;
    for (int64_t block = range.begin / mask.block; block * mask.block < range.end; ++block) {
      const PositionRange keys{block * mask.block, (block + 1) * mask.block};
      if (block_read(mask, queries, block)) append(read, intersection(keys, range));
    }
  }
  return read;
}

/// The first query of a range reaches furthest back, and the band is unbroken up to it.
std::vector<PositionRange> hidden_read(const AttentionMask& mask,
                                       std::span<const PositionRange> queries,
                                       std::span<const PositionRange> held) {
  std::vector<PositionRange> halos;
  for (const PositionRange& range : queries)
    append(halos, {mask.first_hidden_position(range.begin), range.begin});
  std::vector<PositionRange> read;
  for (const PositionRange& range : held)
    for (const PositionRange& halo : halos) append(read, intersection(halo, range));
  return read;
}

/// `positions` as rows along the S of the rank that holds `held`.
std::vector<PositionRange> rows_of(std::span<const PositionRange> positions,
                                   std::span<const PositionRange> held) {
  std::vector<PositionRange> rows;
  int64_t first = 0;  // row of the range's first position
  for (const PositionRange& range : held) {
    for (const PositionRange& part : positions) {
      const PositionRange inside = intersection(part, range);
      append(rows, {inside.begin - range.begin + first, inside.end - range.begin + first});
    }
    first += range.size();
  }
  return rows;
}

std::vector<KeyPiece> pieces_between(const AttentionMask& mask, const std::vector<CopyBand>& bands,
                                     std::span<const PositionRange> queries,
                                     std::span<const PositionRange> held) {
  std::vector<KeyPiece> pieces;
  for (size_t band = 0; band < bands.size(); ++band) {
    KeyPiece piece{.band = band, .positions = positions_read(mask, bands[band], queries, held)};
    if (piece.positions.empty()) continue;
    piece.rows = rows_of(piece.positions, held);
    for (const PositionRange& part : piece.positions) piece.count += part.size();
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

}  // namespace

std::vector<CopyBand> copy_bands(const AttentionMask& mask) {
  if (mask.visibility == CopyVisibility::naive || mask.copies == 1) return {{0, mask.copies}};
  return {{0, 1}, {1, mask.copies - 1}};
}

std::vector<PositionRange> positions_read(const AttentionMask& mask, const CopyBand& band,
                                          std::span<const PositionRange> queries,
                                          std::span<const PositionRange> held) {
  return band.first == 0 ? originals_read(mask, queries, held) : hidden_read(mask, queries, held);
}

ContextPlan make_context_plan(const AttentionMask& mask, int64_t positions, int rank, int size) {
  std::vector<std::vector<PositionRange>> held;
  for (int r = 0; r < size; ++r) held.push_back(context_positions(positions, r, size));
  const auto of = [&](int r) { return std::span(held[static_cast<size_t>(r)]); };
  ContextPlan plan{.own = held[static_cast<size_t>(rank)], .bands = copy_bands(mask)};
  for (int shift = 1; shift < size; ++shift) {
    const int to = (rank + shift) % size;
    const int from = (rank - shift + size) % size;
    plan.steps.push_back({.to = to,
                          .from = from,
                          .sent = pieces_between(mask, plan.bands, of(to), of(rank)),
                          .received = pieces_between(mask, plan.bands, of(rank), of(from))});
  }
  plan.largest.resize(plan.bands.size());
  for (int reader = 0; reader < size; ++reader)
    for (int holder = 0; holder < size; ++holder) {
      if (reader == holder) continue;
      for (const KeyPiece& piece : pieces_between(mask, plan.bands, of(reader), of(holder)))
        plan.largest[piece.band] = std::max(plan.largest[piece.band], piece.count);
    }
  return plan;
}

}  // namespace phalanx
