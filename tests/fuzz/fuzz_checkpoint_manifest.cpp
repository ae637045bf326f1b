// Fuzz target: any bytes as manifest.json, as a rank's list of blocks, or as next_step.json are
// read or refused by Error, and what was read is printed to a text that is read as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/checkpoint/checked_json.h"
#include "core/checkpoint/manifest.h"
#include "core/train/resume_certificate.h"

namespace {

using namespace phalanx;

void try_manifest(const std::string& text) {
  Manifest manifest;
  try {
    manifest = parse_manifest(text, "fuzz");
  } catch (const CheckpointDamage&) {
    return;
  }
  if (!(parse_manifest(manifest_json(manifest), "printed") == manifest)) std::abort();
}

void try_shard(const std::string& text) {
  SavedShard shard;
  try {
    shard = parse_shard(text);
  } catch (const CheckpointDamage&) {
    return;
  }
  if (!(parse_shard(shard_json(shard)) == shard)) std::abort();
}

void try_certificate(const std::string& text) {
  std::string printed;
  try {
    printed = certificate_json(parse_certificate(text, "fuzz"));
  } catch (const Error&) {
    return;
  }
  // As texts, because a loss may be no number.
  if (certificate_json(parse_certificate(printed, "printed")) != printed) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try_manifest(text);
  try_shard(text);
  try_certificate(text);
  // No fuzzer finds a checksum.
  if (text.ends_with("\n}\n")) try_certificate(phalanx::with_checksum(text));
  return 0;
}
