// ResumeCertificate: what the step after a checkpoint did in the run that wrote it, so that a run
// that goes on from there can prove that it is the same run.
#pragma once

#include <cstdint>
#include <string>

#include "core/train/train_step.h"
#include "data/batch_loader.h"

namespace phalanx {

/// SAVE/iter_0001000/next_step.json.
std::string certificate_path(const std::string& checkpoint);

/// XXH3 of tokens and targets of every sample, seeded with the sample's number and added up: the
/// same whatever ranks and micro-batches the samples were shared out to. Collective over `dp`, each
/// rank with its part of the batch.
uint64_t batch_hash(const GlobalBatch& batch, ProcessGroup& dp);

struct ResumeCertificate {
  int64_t iteration = 0;  // of the step, the checkpoint's plus one
  int64_t global_batch_size = 0;
  uint64_t batch_hash = 0;
  double loss = 0;
  double gradient_norm = 0;
  /// Layout, precision, threads, code version and processor: where these are equal, so must be
  /// every bit of the step.
  std::string setup;

  bool operator==(const ResumeCertificate&) const = default;
};

/// Numbers as hexadecimal floats, so that no bit is lost; with a checksum, so that a damaged
/// certificate is not taken for that of another run.
std::string certificate_json(const ResumeCertificate& certificate);
/// Throws Error, naming `path`, unless `text` is a certificate as it was written. Any text is safe.
ResumeCertificate parse_certificate(const std::string& text, const std::string& path);

/// "Zen 4 ..." of /proc/cpuinfo, for `setup`.
std::string processor_name();

/// How a repeated step compares with the certificate.
struct CertificateCheck {
  bool same = false;
  std::string text;  // a sentence for the log: what was compared and how well it agrees
};

/// In the same setup loss and gradient norm must be equal bit for bit; in another within
/// `tolerance`, relative. Another batch hash is a difference in any setup, unless the batch has
/// another size, in which case nothing can be compared and the text says so.
CertificateCheck check_certificate(const ResumeCertificate& expected,
                                   const ResumeCertificate& found, double tolerance);

/// Relative error that another order of sums may give loss and gradient norm:
/// eps(accumulator) sqrt(L H) for the sums of all layers, and in bf16 eps(bf16) sqrt(2 L) for the
/// rounding of every branch.
double certificate_tolerance(const ModelConfig& model, DType dtype);

}  // namespace phalanx
