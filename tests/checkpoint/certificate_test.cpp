// Resume certificates: the batch's hash whoever reads it, numbers without loss, what passes for the
// same, and a tolerance that real meshes keep.
#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <iostream>
#include <limits>
#include <numeric>

#include "core/train/resume_certificate.h"
#include "parallel/thread_process_group.h"
#include "tests/checkpoint/global_state.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kSamples = 8;

/// Hash of a global batch of a loader's, read by `num_shards` ranks, after `change`.
uint64_t hash_of(int num_shards, int64_t micro_batch_size, int64_t first_sample,
                 const std::function<void(MicroBatch&)>& change = {}) {
  std::vector<uint64_t> hashes(static_cast<size_t>(num_shards));
  run_thread_ranks(num_shards, [&](ThreadRank& rank) {
    const auto dp = rank.world_group();
    const auto loader = make_batch_loader({.mock_data = true, .seq_length = 16}, DataSplit::train,
                                          {.seq_length = 16,
                                           .micro_batch_size = micro_batch_size,
                                           .global_batch_size = kSamples,
                                           .shard = rank.rank(),
                                           .num_shards = num_shards,
                                           .num_samples = 64,
                                           .first_sample = first_sample},
                                          {.size = 1000, .end_of_document = 0});
    GlobalBatch batch = loader->next();
    if (change && rank.rank() == 0) change(batch.micro_batches.front());
    hashes[static_cast<size_t>(rank.rank())] = batch_hash(batch, *dp);
  });
  for (const uint64_t hash : hashes) EXPECT_EQ(hash, hashes.front());
  return hashes.front();
}

TEST(BatchHash, IsTheSameHoweverTheBatchIsSharedOut) {
  const uint64_t expected = hash_of(1, 1, 16);
  for (const int num_shards : {1, 2, 4})
    for (const int64_t micro_batch_size : {1, 2})
      EXPECT_EQ(hash_of(num_shards, micro_batch_size, 16), expected)
          << num_shards << " ranks, micro-batch " << micro_batch_size;
  EXPECT_EQ(hash_of(1, 8, 16), expected);
  EXPECT_NE(hash_of(1, 1, 24), expected);
}

TEST(BatchHash, ChangesWithOneTokenAndWithTheOrder) {
  const uint64_t expected = hash_of(2, 2, 0);
  for (size_t place = 0; place < 32; ++place) {
    EXPECT_NE(hash_of(2, 2, 0, [&](MicroBatch& batch) { batch.tokens.at(place) ^= 1; }), expected);
    EXPECT_NE(hash_of(2, 2, 0, [&](MicroBatch& batch) { batch.targets.at(place) = kIgnoreTarget; }),
              expected);
  }
  const auto swap_samples = [](MicroBatch& batch) {
    for (std::vector<int32_t>* ids : {&batch.tokens, &batch.targets})
      for (size_t i = 0; i < ids->size(); i += 2) std::swap((*ids)[i], (*ids)[i + 1]);
  };
  EXPECT_NE(hash_of(2, 2, 0, swap_samples), expected);
  const auto swap_positions = [](MicroBatch& batch) {
    std::swap(batch.tokens[0], batch.tokens[2]);
  };
  EXPECT_NE(hash_of(2, 2, 0, swap_positions), expected);
}

ResumeCertificate sample() {
  return {.iteration = 1001,
          .global_batch_size = 512,
          .batch_hash = 0xfedcba9876543210,
          .loss = 2.5,
          .gradient_norm = 0.75,
          .setup = "tp 2, \"quoted\"\n"};
}

TEST(Certificate, ComesBackBitForBit) {
  using Limits = std::numeric_limits<double>;
  std::vector<double> values{0.0,
                             -0.0,
                             0.1,
                             1.0 / 3.0,
                             Limits::max(),
                             Limits::min(),
                             Limits::denorm_min(),
                             -5 * Limits::denorm_min(),
                             Limits::infinity(),
                             -Limits::infinity(),
                             Limits::quiet_NaN()};
  const Philox random(3, "certificates");
  for (uint64_t i = 0; i < 1000; ++i)
    values.push_back(std::ldexp(random.uniform(2 * i) - 0.5,
                                static_cast<int>(random.uniform(2 * i + 1) * 2000) - 1000));
  for (const double value : values) {
    ResumeCertificate certificate = sample();
    certificate.loss = value;
    certificate.gradient_norm = -value;
    const ResumeCertificate back =
        parse_certificate(certificate_json(certificate), "next_step.json");
    EXPECT_EQ(std::bit_cast<uint64_t>(back.loss), std::bit_cast<uint64_t>(value)) << value;
    EXPECT_EQ(std::bit_cast<uint64_t>(back.gradient_norm), std::bit_cast<uint64_t>(-value));
    certificate.loss = certificate.gradient_norm = 1;
    ResumeCertificate rest = back;
    rest.loss = rest.gradient_norm = 1;
    EXPECT_EQ(rest, certificate);
  }
}

TEST(Certificate, AnyOtherTextIsRefused) {
  const std::string text = certificate_json(sample());
  const auto refusal = [](const std::string& other) {
    return failure_of<Error>([&] { parse_certificate(other, "SAVE/next_step.json"); });
  };
  for (size_t length = 0; length + 2 < text.size(); ++length)
    ASSERT_THAT(refusal(text.substr(0, length)), HasSubstr("SAVE/next_step.json")) << length;
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  for (const std::string& other : {std::string("[]"), std::string("3"), std::string("null"), deep,
                                   "{\"setup\": " + deep + "}"})
    EXPECT_THAT(refusal(other), HasSubstr("is not a resume certificate"));
  for (const char* field :
       {"iteration", "global_batch_size", "batch_hash", "lm_loss", "grad_norm", "setup"}) {
    std::string without = text;
    without.replace(without.find("\"" + std::string(field) + "\"") + 1, 1, "X");
    EXPECT_THAT(refusal(without), HasSubstr("is not a resume certificate")) << field;
  }
}

TEST(Certificate, SameSetupAsksForTheSameBits) {
  const ResumeCertificate expected = sample();
  ResumeCertificate found = expected;
  CertificateCheck result = check_certificate(expected, found, 0.1);
  EXPECT_TRUE(result.same);
  EXPECT_THAT(result.text, HasSubstr("bit for bit"));
  found.loss = std::nextafter(found.loss, 9.0);
  result = check_certificate(expected, found, 0.1);
  EXPECT_FALSE(result.same);
  EXPECT_THAT(result.text, AllOf(HasSubstr("bits differ"), HasSubstr("step 1001")));
  found = expected;
  found.gradient_norm = std::nextafter(found.gradient_norm, 0.0);
  EXPECT_FALSE(check_certificate(expected, found, 0.1).same);
}

TEST(Certificate, AnotherSetupAsksForTheTolerance) {
  const ResumeCertificate expected = sample();
  ResumeCertificate found = expected;
  found.setup = "tp 4";
  found.loss = expected.loss * 1.009;
  found.gradient_norm = expected.gradient_norm / 1.009;
  CertificateCheck result = check_certificate(expected, found, 0.01);
  EXPECT_TRUE(result.same);
  EXPECT_THAT(result.text, HasSubstr("another setup"));
  found.loss = expected.loss * 1.02;
  EXPECT_FALSE(check_certificate(expected, found, 0.01).same);
  found.loss = expected.loss;
  found.gradient_norm = expected.gradient_norm * 1.02;
  result = check_certificate(expected, found, 0.01);
  EXPECT_FALSE(result.same);
  EXPECT_THAT(result.text, HasSubstr("0.0196 and 0.01"));
}

// In any setup: a step that was skipped may be repeated as such, and nothing else is like it.
TEST(Certificate, NoNumbersEqualNoNumbersOnly) {
  using Limits = std::numeric_limits<double>;
  const std::vector<double> values{1.0, Limits::infinity(), -Limits::infinity(),
                                   Limits::quiet_NaN()};
  for (const char* setup : {"tp 2", "tp 4"})
    for (size_t i = 0; i < values.size(); ++i)
      for (size_t j = 0; j < values.size(); ++j) {
        ResumeCertificate expected = sample();
        ResumeCertificate found = sample();
        expected.setup = "tp 2";
        found.setup = setup;
        expected.loss = values[i];
        found.loss = values[j];
        EXPECT_EQ(check_certificate(expected, found, 0.5).same, i == j) << setup << i << j;
        expected.loss = found.loss = 1;
        expected.gradient_norm = values[i];
        found.gradient_norm = values[j];
        EXPECT_EQ(check_certificate(expected, found, 0.5).same, i == j) << setup << i << j;
        expected.loss = found.loss = Limits::quiet_NaN();
        EXPECT_EQ(check_certificate(expected, found, 0.5).same, i == j) << setup << i << j;
      }
}

TEST(Certificate, OtherDataIsADifferenceInAnySetupAnotherBatchSizeIsNone) {
  const ResumeCertificate expected = sample();
  ResumeCertificate found = expected;
  found.batch_hash ^= 1;
  for (const char* setup : {"tp 4", "tp 2"}) {
    found.setup = setup;
    const CertificateCheck result = check_certificate(expected, found, 1e9);
    EXPECT_FALSE(result.same);
    EXPECT_THAT(result.text, AllOf(HasSubstr("fedcba9876543210"), HasSubstr("data options")));
  }
  found.global_batch_size = 256;
  const CertificateCheck result = check_certificate(expected, found, 0);
  EXPECT_TRUE(result.same);
  EXPECT_THAT(result.text,
              AllOf(HasSubstr("not verified"), HasSubstr("256 samples instead of 512")));
}

/// Largest relative difference of loss and norm of the first step on `line` and on one rank, over
/// the certificate's tolerance.
double used_of_tolerance(const MeshCase& mesh) {
  MeshSystem alone(mesh.layout, {}, make_single_process_groups());
  const StepMetrics expected = alone.step(batch_of_step(mesh.layout, 0));
  double worst = 0;
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    const StepMetrics found = system.step(batch_of_step(mesh.layout, 0));
    if (rank.rank() == 0)
      worst = std::max(std::abs(found.loss / expected.loss - 1),
                       std::abs(found.gradient_norm / expected.gradient_norm - 1));
  });
  return worst / certificate_tolerance(mesh.layout.model, mesh.layout.dtype);
}

class CertificateTolerance : public testing::TestWithParam<DType> {};

TEST_P(CertificateTolerance, IsKeptByTheFirstStepOnOtherMeshes) {
  double worst = 0;
  for (const char* line : {"cswa2: tp2 sp", "cswa2: dp4", "swa3: pp2 zb", "naive2: cp4",
                           "olmo2: tp4 kv2", "hybrid: dp2 tp2", "documents: cp2 tp2 sp",
                           "sparse: tp2 pp2", "cswa2: dp2 tp2 zero3", "moe: tp2 sp ep2"}) {
    MeshCase mesh(line);
    // Wider than other tests' models, because a bound of rounding is one of many terms.
    mesh.layout.model.hidden_size = 64;
    mesh.layout.model.ffn_hidden_size = 160;
    mesh.layout.model.vocab_size = 500;
    mesh.layout.dtype = GetParam();
    const double used = used_of_tolerance(mesh);
    EXPECT_LE(used, 1) << line;
    worst = std::max(worst, used);
  }
  RecordProperty("largest_part_of_tolerance", std::to_string(worst));
  std::cout << dtype_name(GetParam()) << ": first steps use at most " << worst
            << " of the tolerance\n";
}
INSTANTIATE_TEST_SUITE_P(Precisions, CertificateTolerance, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return dtype_name(info.param); });

}  // namespace
}  // namespace phalanx::test
