// Command line and environment through Boost.Program_options; config files by a reader of our own,
// because Boost's cuts every value at '#', knows no quotes and stops at the first bad line.
#include "launch/option_sources.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace phalanx {
namespace {

namespace po = boost::program_options;
using Arguments = std::vector<std::string>;

po::options_description description_of(const OptionTable& table) {
  po::options_description description;
  for (const auto& option : table.options()) {
    const auto value = po::value<Arguments>();
    if (option.kind == Option::Kind::list) value->multitoken();
    if (option.kind == Option::Kind::toggle) {
      value->implicit_value(Arguments{"true"}, "true");
      description.add_options()(("no-" + option.name).c_str(), new po::untyped_value(true), "");
    }
    description.add_options()(option.name.c_str(), value, "");
  }
  if (table.find("precision") != nullptr)
    description.add_options()("bf16", new po::untyped_value(true), "");
  return description;
}

// Takes out `--name` where a value must follow and none does. Boost would take the next option for
// the value.
Arguments without_valueless(const Arguments& arguments, const po::options_description& description,
                            std::vector<std::string>& problems) {
  const auto known = [&](const std::string& token) {
    const std::string name = token.substr(0, token.find('='));
    return name.starts_with("--") && description.find_nothrow(name.substr(2), false) != nullptr;
  };
  Arguments kept;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool needs_value =
        known(arguments[i]) && arguments[i].find('=') == std::string::npos &&
        description.find(arguments[i].substr(2), false).semantic()->min_tokens() > 0;
    const bool no_value = i + 1 == arguments.size() || known(arguments[i + 1]);
    if (needs_value && no_value)
      problems.push_back(arguments[i] + ": a value must follow");
    else
      kept.push_back(arguments[i]);
  }
  return kept;
}

// Boost throws at the first bad token. Each is noted and taken out until the rest parses.
po::parsed_options parse(Arguments arguments, const po::options_description& description,
                         std::vector<std::string>& problems) {
  using Style = po::command_line_style::style_t;
  constexpr int kStyle = Style::allow_long | Style::long_allow_adjacent | Style::long_allow_next;
  while (true) {
    try {
      po::command_line_parser parser(arguments);
      return parser.options(description).style(kStyle).allow_unregistered().run();
    } catch (const po::error_with_option_name& error) {
      const std::string name = error.get_option_name();
      const auto matches = [&](const std::string& token) {
        return token == name || token.starts_with(name + "=");
      };
      const auto token = std::find_if(arguments.rbegin(), arguments.rend(), matches);
      if (token == arguments.rend()) throw UsageError(error.what());
      problems.push_back(fmt::format("{}: {}", *token, error.what()));
      arguments.erase(std::next(token).base());
    }
  }
}

std::string unknown_option(const std::string& name, const OptionTable& table) {
  auto names = table.names();
  for (const auto& option : table.options())
    if (option.kind == Option::Kind::toggle) names.push_back("no-" + option.name);
  if (names.empty()) return fmt::format("--{}: no such option; there are none here", name);
  return fmt::format("--{}: no such option; the nearest is --{}", name, nearest_word(name, names));
}

Setting setting_of(const po::option& parsed, const OptionTable& table) {
  const std::string& name = parsed.string_key;
  const std::string where = "--" + name;
  if (name == "bf16") return {"precision", {"bf16"}, where};
  const Option* option = table.find(name);
  if (option == nullptr) return {name.substr(3), {"false"}, where};  // --no-name
  if (parsed.value.empty()) return {name, {"true"}, where};
  return {name, parsed.value, where};
}

std::string environment_option(const std::string& variable) {
  constexpr std::string_view kPrefix = "PHALANX_";
  // PHALANX_FAULT and PHALANX_FAULT_SECONDS (core/checkpoint/fault_hook.h) are no options.
  if (!variable.starts_with(kPrefix) || variable.starts_with("PHALANX_FAULT")) return {};
  std::string name = variable.substr(kPrefix.size());
  std::ranges::transform(name, name.begin(), [](unsigned char c) {
    return c == '_' ? '-' : static_cast<char>(std::tolower(c));
  });
  return name;
}

bool is_list(const OptionTable& table, const std::string& name) {
  const Option* option = table.find(name);
  return option != nullptr && option->kind == Option::Kind::list;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const auto begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// The value without its comment: a '#' outside quotes with a blank (or nothing) before it.
std::string_view without_comment(std::string_view value) {
  bool quoted = false;
  for (size_t i = 0; i < value.size(); ++i) {
    if (quoted && value[i] == '\\')
      ++i;
    else if (value[i] == '"')
      quoted = !quoted;
    else if (value[i] == '#' && !quoted && (i == 0 || value[i - 1] == ' ' || value[i - 1] == '\t'))
      return trim(value.substr(0, i));
  }
  return value;
}

std::vector<std::string> config_values(std::string_view value, bool list) {
  const std::string_view bare = without_comment(value);
  if (list) return split_words(bare);
  if (!bare.starts_with('"')) return {std::string(bare)};
  auto words = split_words(bare);
  check_usage(words.size() == 1, "text after the quoted value in ", bare);
  return words;
}

}  // namespace

Settings read_command_line(const std::vector<std::string>& arguments, const OptionTable& table) {
  Settings result;
  const auto description = description_of(table);
  const auto parsed = parse(without_valueless(arguments, description, result.problems), description,
                            result.problems);
  bool after_unknown = false;
  for (const auto& option : parsed.options) {
    const bool is_value = option.string_key.empty();
    if (option.unregistered && !is_value) {
      result.problems.push_back(unknown_option(option.string_key, table));
    } else if (!is_value) {
      result.settings.push_back(setting_of(option, table));
    } else if (!after_unknown) {
      result.words.push_back(option.value.empty() ? "" : option.value.front());
    }
    // The words behind an unknown option are its values, not problems of their own.
    after_unknown = is_value ? after_unknown : option.unregistered;
  }
  return result;
}

Settings read_environment(const OptionTable& table) {
  Settings result;
  const auto parsed = po::parse_environment(po::options_description(), environment_option);
  for (const auto& option : parsed.options) {
    std::string variable = "PHALANX_" + option.string_key;
    std::ranges::transform(variable, variable.begin(), [](unsigned char c) {
      return c == '-' ? '_' : static_cast<char>(std::toupper(c));
    });
    const std::string text = option.value.empty() ? "" : option.value.front();
    try {
      auto values =
          is_list(table, option.string_key) ? split_words(text) : std::vector<std::string>{text};
      result.settings.push_back({option.string_key, std::move(values), std::move(variable)});
    } catch (const UsageError& error) {
      result.problems.push_back(fmt::format("{}: {}", variable, error.what()));
    }
  }
  return result;
}

Settings read_config_text(std::string_view text, const std::string& file,
                          const OptionTable& table) {
  Settings result;
  std::set<std::string, std::less<>> seen;
  for (int64_t number = 1; !text.empty(); ++number) {
    const auto end = std::min(text.find('\n'), text.size());
    const std::string_view line = trim(text.substr(0, end));
    text.remove_prefix(std::min(text.size(), end + 1));
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line.front() == '[' && line.back() == ']') continue;  // sections are for the reader's eye
    const auto equals = line.find('=');
    const std::string name(trim(line.substr(0, equals)));
    const std::string where = fmt::format("{}:{}: {}", file, number, name);
    if (equals == std::string_view::npos || name.empty()) {
      result.problems.push_back(fmt::format("{}:{}: '{}' is not name = value", file, number, line));
      continue;
    }
    if (!seen.insert(name).second) {
      result.problems.push_back(where + ": given a second time; keep one of the lines");
      continue;
    }
    try {
      auto values = config_values(trim(line.substr(equals + 1)), is_list(table, name));
      result.settings.push_back({name, std::move(values), where});
    } catch (const UsageError& error) {
      result.problems.push_back(fmt::format("{}: {}", where, error.what()));
    }
  }
  return result;
}

Settings read_config_file(const std::string& file, const OptionTable& table) {
  if (!std::filesystem::is_regular_file(file))
    return {{}, {fmt::format("config file {} is no file; give an existing one", file)}};
  std::ifstream input(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(input)), std::istreambuf_iterator<char>());
  if (!input.is_open() || input.bad())
    return {{}, {fmt::format("config file {} cannot be read; give an existing file", file)}};
  return read_config_text(text, file, table);
}

}  // namespace phalanx
