// The lists of meshes: every line is legal, and the mixed ones have every legal triple of choices.
#include <fmt/format.h>

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <set>

#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_list.h"

namespace phalanx::test {
namespace {

constexpr int64_t kRanks = 8;
constexpr size_t kNumAxes = 9;
/// A choice on each axis: model, tp, pp, cp, dp, ep, expert_tp, recompute, key-value heads.
using Choices = std::array<std::string, kNumAxes>;
const std::array<std::vector<std::string>, kNumAxes> kChoices = {{
    {"cswa2", "swa3", "naive2", "hybrid", "moe", "sparse", "olmo2", "untied", "documents"},
    {"", "tp", "sp"},
    {"", "1f1b", "gpipe", "interleaved", "zb"},
    {"", "cp"},
    {"", "dp"},
    {"", "ep"},
    {"", "etp"},
    {"none", "attention", "layer"},
    {"enough", "fewer"},
}};
using Triple = std::array<std::pair<size_t, std::string>, 3>;

bool is_legal(const MeshCase& mesh) {
  return validate(mesh.run_config(), mesh.world_size).empty();
}

std::string pipeline_choice(const ParallelConfig& p) {
  if (p.pipeline_model_parallel_size == 1) return "";
  if (p.pipeline_schedule == PipelineScheduleKind::gpipe) return "gpipe";
  if (p.pipeline_schedule == PipelineScheduleKind::zero_bubble) return "zb";
  return p.num_virtual_stages_per_pipeline_rank > 1 ? "interleaved" : "1f1b";
}

Choices choices_of(const MeshCase& mesh) {
  const ParallelConfig& p = mesh.layout.parallel;
  const int64_t tp = p.tensor_model_parallel_size;
  const int64_t dp =
      mesh.world_size / tp / p.pipeline_model_parallel_size / p.context_parallel_size;
  return {mesh.text.substr(0, mesh.text.find(':')),
          tp == 1               ? ""
          : p.sequence_parallel ? "sp"
                                : "tp",
          pipeline_choice(p),
          p.context_parallel_size > 1 ? "cp" : "",
          dp > 1 ? "dp" : "",
          p.expert_model_parallel_size > 1 ? "ep" : "",
          p.expert_tensor_parallel_size > 1 ? "etp" : "",
          p.recompute.empty() ? "none" : p.recompute.front(),
          mesh.layout.model.query_groups() < tp ? "fewer" : "enough"};
}

void add_triples(std::set<Triple>& triples, const Choices& choices) {
  for (size_t a = 0; a < kNumAxes; ++a)
    for (size_t b = a + 1; b < kNumAxes; ++b)
      for (size_t c = b + 1; c < kNumAxes; ++c)
        triples.insert({{{a, choices[a]}, {b, choices[b]}, {c, choices[c]}}});
}

/// The words of `choices` at these sizes.
struct Sizes {
  int64_t tp, pp, cp, dp, ep, etp;
};
std::string line_of(const Choices& choices, const Sizes& s) {
  std::string text = fmt::format("{}: dp{} cp{} tp{} pp{} ep{} etp{}", choices[0], s.dp, s.cp, s.tp,
                                 s.pp, s.ep, s.etp);
  if (choices[1] == "sp") text += " sp";
  if (choices[2] == "gpipe" || choices[2] == "zb") text += " " + choices[2];
  if (choices[2] == "interleaved") text += " vp2";
  if (choices[7] != "none") text += " recompute=" + choices[7];
  const int64_t groups = choices[8] == "fewer" ? s.tp / 2 : std::max<int64_t>(4, s.tp);
  return text + fmt::format(" kv{}", groups);
}

bool has_legal_mesh(const Choices& choices) {
  if (choices[8] == "fewer" && choices[1].empty()) return false;
  const auto sizes_of = [&](size_t axis) {
    return choices[axis].empty() ? std::vector<int64_t>{1} : std::vector<int64_t>{2, 4, 8};
  };
  for (const int64_t tp : sizes_of(1))
    for (const int64_t pp : sizes_of(2))
      for (const int64_t cp : sizes_of(3))
        for (const int64_t dp : sizes_of(4)) {
          if (tp * pp * cp * dp != kRanks) continue;
          for (const int64_t ep : sizes_of(5))
            for (const int64_t etp : sizes_of(6))
              if (is_legal(MeshCase(line_of(choices, {tp, pp, cp, dp, ep, etp})))) return true;
        }
  return false;
}

/// Triples that some legal mesh of 8 ranks has, by the product's own validation.
void add_legal_triples(std::set<Triple>& triples, Choices& choices, size_t axis) {
  if (axis == kNumAxes) {
    if (has_legal_mesh(choices)) add_triples(triples, choices);
    return;
  }
  for (const std::string& choice : kChoices[axis]) {
    choices[axis] = choice;
    // Choices that contradict each other before there are sizes: experts of dense models.
    if ((axis == 5 || axis == 6) && !choice.empty() && choices[0] != "moe") continue;
    add_legal_triples(triples, choices, axis + 1);
  }
}

std::set<Triple> triples_of(std::span<const char* const> lines) {
  std::set<Triple> triples;
  for (const char* line : lines) add_triples(triples, choices_of(MeshCase(line)));
  return triples;
}

std::string text_of(const Triple& triple) {
  std::string text;
  for (const auto& [axis, choice] : triple) text += fmt::format("{}:'{}' ", axis, choice);
  return text;
}

TEST(MeshList, EveryLineIsLegalAndItsNameItsOwn) {
  std::set<std::string> names;
  for (const auto& list : {single_meshes(), pair_meshes(), mixed_meshes(), zero3_meshes()})
    for (const char* line : list) {
      const MeshCase mesh(line);
      EXPECT_THAT(validate(mesh.run_config(), mesh.world_size), testing::IsEmpty()) << line;
      EXPECT_TRUE(names.insert(mesh.name()).second || list.data() == mixed_meshes().data()) << line;
    }
}

TEST(MeshList, CoversAllTriples) {
  std::set<Triple> legal;
  Choices choices;
  add_legal_triples(legal, choices, 0);
  EXPECT_GT(legal.size(), 1000u);
  for (const char* line : mixed_meshes()) EXPECT_EQ(MeshCase(line).world_size, kRanks) << line;
  const std::set<Triple> covered = triples_of(mixed_meshes());
  for (const Triple& triple : legal) EXPECT_TRUE(covered.contains(triple)) << text_of(triple);
  // Each mesh is there for a triple of its own: without it the check fails.
  EXPECT_LT(triples_of(mixed_meshes().first(mixed_meshes().size() - 1)).size(), legal.size());
}

}  // namespace
}  // namespace phalanx::test
