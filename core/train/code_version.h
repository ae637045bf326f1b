// Which program this is.
#pragma once

#include <string>

namespace phalanx {

/// "0.1.0 (1a2b3c4d5e6f)": the version and the commit it was built from, with "-changed" if the
/// sources differed from it; the version alone where there was no repository.
std::string code_version();

}  // namespace phalanx
