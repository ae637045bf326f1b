// From options to a tokenizer: reads the files that the type needs.
#include "data/tokenizer.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "data/tokenizer_bytes.h"
#include "data/tokenizer_gpt2.h"
#include "data/tokenizer_json.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

std::string read_file(const std::string& path, std::string_view option, TokenizerType type) {
  check_usage(!path.empty(), "--tokenizer-type ", enum_name(type), " needs --", option, " FILE");
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file.peek() != std::ifstream::traits_type::eof()) content << file.rdbuf();
  // Opening a folder works, reading it does not.
  check_usage(file.is_open() && !file.bad(), "--", option, " ", path,
              " cannot be read: ", std::strerror(errno));
  return std::move(content).str();
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerConfig& config) {
  switch (config.type) {
    case TokenizerType::bytes:
      return std::make_unique<BytesTokenizer>();
    case TokenizerType::hugging_face:
      return parse_tokenizer_json(read_file(config.model, "tokenizer-model", config.type),
                                  config.model);
    case TokenizerType::gpt2_bpe: {
      const std::string vocabulary = read_file(config.vocab_file, "vocab-file", config.type);
      const std::string merges = read_file(config.merge_file, "merge-file", config.type);
      return parse_gpt2_tokenizer(vocabulary, config.vocab_file, merges, config.merge_file);
    }
  }
  fail("unknown tokenizer type ", static_cast<int>(config.type));
}

}  // namespace phalanx
