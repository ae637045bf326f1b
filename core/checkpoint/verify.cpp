#include "core/checkpoint/verify.h"
namespace phalanx { void verify_index(const std::string&, const Manifest&) {} VerifyReport verify_checkpoint(const std::string&, const VerifyOptions&) { return {}; } }
