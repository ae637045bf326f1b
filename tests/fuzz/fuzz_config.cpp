// Fuzzes the config file reader: any bytes give settings or problems, never a crash; what was read
// can be written and read again to the same values.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "launch/option_sources.h"

namespace {

// One option of every kind, so that the target needs nothing of the trainer.
struct Fields {
  int64_t number = 0;
  double real = 0;
  bool toggle = false;
  std::string text;
  std::vector<std::string> list;
};

void visit_fields(Fields& fields, phalanx::OptionTable& visit) {
  visit("number", fields.number, "");
  visit("real", fields.real, "");
  visit("toggle", fields.toggle, "");
  visit("text", fields.text, "");
  visit("list", fields.list, "");
}

void assign(const phalanx::Settings& settings, const phalanx::OptionTable& table) {
  for (const auto& setting : settings.settings) {
    const phalanx::Option* option = table.find(setting.name);
    if (option == nullptr || setting.values.empty()) continue;
    try {
      option->assign(setting.values);
    } catch (const phalanx::UsageError&) {  // a bad value; the message is the reader's answer
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Fields fields;
  phalanx::OptionTable table;
  visit_fields(fields, table);
  assign(phalanx::read_config_text(text, "fuzz", table), table);

  std::string written;
  for (const auto& option : table.options()) written += option.name + " = " + option.text() + "\n";
  Fields again;
  phalanx::OptionTable table_again;
  visit_fields(again, table_again);
  const auto settings = phalanx::read_config_text(written, "written", table_again);
  assign(settings, table_again);
  const bool same = fields.number == again.number && fields.real == again.real &&
                    fields.toggle == again.toggle && fields.text == again.text &&
                    fields.list == again.list && settings.problems.empty();
  if (!same) std::abort();
  return 0;
}
