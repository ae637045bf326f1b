// Precedence of the sources, and the texts made from the table of options.
#include "launch/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <sstream>

#include "launch/option_sources.h"

namespace phalanx {
namespace {

/// The last value of single option `name` among `sources`, highest precedence first.
std::string look_up(const std::string& name, const std::vector<const Settings*>& sources) {
  for (const Settings* source : sources) {
    const auto& settings = source->settings;
    const auto found = std::find_if(settings.rbegin(), settings.rend(),
                                    [&](const Setting& setting) { return setting.name == name; });
    if (found != settings.rend() && !found->values.empty()) return found->values.back();
  }
  return {};
}

void apply(const Settings& source, const OptionTable& table, std::vector<std::string>& problems) {
  static const std::vector<std::string> all_names = every_option_name();
  problems.insert(problems.end(), source.problems.begin(), source.problems.end());
  for (const auto& setting : source.settings) {
    const Option* option = table.find(setting.name);
    if (option == nullptr) {
      if (std::ranges::find(all_names, setting.name) == all_names.end())
        problems.push_back(fmt::format("{}: no such option; the nearest is {}", setting.where,
                                       nearest_word(setting.name, all_names)));
      continue;
    }
    try {
      check_usage(option->kind == Option::Kind::list || setting.values.size() == 1,
                  "takes one value, not ", setting.values.size());
      option->assign(setting.values);
    } catch (const UsageError& error) {
      problems.push_back(fmt::format("{}: {}", setting.where, error.what()));
    }
  }
}

/// `settings` without those of the options in `group`.
Settings without_group(Settings settings, const OptionTable& table, const std::string& group) {
  std::erase_if(settings.settings, [&](const Setting& setting) {
    const Option* option = table.find(setting.name);
    return option != nullptr && option->group == group;
  });
  return settings;
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& preset : model_presets()) names.push_back(preset.name);
  return names;
}

}  // namespace

bool wants_help(const std::vector<std::string>& arguments) {
  const auto asks = [](const std::string& word) { return word == "--help" || word == "-h"; };
  return std::ranges::any_of(arguments, asks);
}

std::vector<std::string> apply_options(const std::vector<std::string>& arguments,
                                       const OptionTable& table, RunConfig& config) {
  const Settings command_line = read_command_line(arguments, table);
  const Settings environment = read_environment(table);
  std::vector<std::string> problems;
  Settings file;
  Settings base;
  const std::string file_name = look_up("config", {&command_line, &environment});
  if (!file_name.empty()) file = read_config_file(file_name, table);
  const std::vector<const Settings*> sources = {&command_line, &file, &environment};
  const std::vector<const Settings*> lowest_first = {&base, &environment, &file, &command_line};
  if (const std::string name = look_up("model", sources); table.find("model") && !name.empty()) {
    const ModelPreset* preset = find_model_preset(name);
    if (preset != nullptr)
      apply_preset(config, *preset);
    else
      problems.push_back(fmt::format("--model: no model is called '{}'; the nearest is {}", name,
                                     nearest_word(name, preset_names())));
  }
  if (const std::string run = look_up("load", sources); table.find("load") && !run.empty())
    base = without_group(read_config_file(run + "/config.ini", table), table, "Parallelism");
  for (const Settings* source : lowest_first) apply(*source, table, problems);
  for (const auto& word : command_line.words)
    problems.push_back(fmt::format("'{}' belongs to no option; options start with --", word));
  return problems;
}

std::vector<std::string> apply_command_line(const std::vector<std::string>& arguments,
                                            const OptionTable& table,
                                            std::vector<std::string>& words) {
  Settings command_line = read_command_line(arguments, table);
  words = std::move(command_line.words);
  std::vector<std::string> problems;
  apply(command_line, table, problems);
  return problems;
}

std::string problem_text(const std::vector<std::string>& problems) {
  std::string text = problems.size() == 1
                         ? "one problem:"
                         : fmt::format("{} problems, all to be mended:", problems.size());
  for (const auto& problem : problems) text.append("\n  ").append(problem);
  return text;
}

void throw_problems(const std::vector<std::string>& problems) {
  if (!problems.empty()) throw UsageError(problem_text(problems));
}

std::string help_text(const std::string& usage, const OptionTable& table,
                      const std::vector<std::string>& groups) {
  namespace po = boost::program_options;
  constexpr unsigned kWidth = 100;
  std::vector<po::options_description> sections;
  std::string group;
  for (const auto& option : table.options()) {
    if (!groups.empty() && std::ranges::find(groups, option.group) == groups.end()) continue;
    if (sections.empty() || group != option.group)
      sections.emplace_back(option.group, kWidth, kWidth / 2);
    group = option.group;
    const bool toggle = option.kind == Option::Kind::toggle;
    std::string name = toggle ? "[no-]" + option.name : option.name;
    // Choices go into the text, where they can wrap.
    const bool choice = option.placeholder.find('|') != std::string::npos;
    if (!toggle) name += choice ? " WORD" : " " + option.placeholder;
    std::string help = option.help;
    if (choice) help += " (" + option.placeholder + ")";
    if (option.name == "precision") help += "; --bf16 is short for --precision bf16";
    const std::string text = option.text();
    help += toggle ? (text == "true" ? " [on]" : " [off]") : text.empty() ? "" : " [" + text + "]";
    sections.back().add_options()(name.c_str(), help.c_str());
  }
  std::ostringstream out;
  out << usage << "\n";
  for (const auto& section : sections) out << "\n" << section;
  out << "\nIn brackets: the default. Every option can also stand in a --config file (name = value)"
         "\nor in the environment (PHALANX_NUM_LAYERS=12); the command line wins, then the file.\n";
  return out.str();
}

std::string config_ini(const RunConfig& config) {
  RunConfig copy = config;
  RunConfig defaults;
  const OptionTable table = option_table(copy);
  const OptionTable default_table = option_table(defaults);
  std::string text = "# Configuration of a phalanx run; `--config` reads it back.\n";
  std::string group;
  for (size_t i = 0; i < table.options().size(); ++i) {
    const Option& option = table.options()[i];
    if (group != option.group) text += fmt::format("\n[{}]\n", option.group);
    group = option.group;
    const std::string value = option.text();
    const std::string standard = default_table.options()[i].text();
    text += fmt::format("{} ={}{}", option.name, value.empty() ? "" : " ", value);
    if (value != standard)
      text += "  # default: " + (standard.empty() ? std::string("empty") : standard);
    text += '\n';
  }
  return text;
}

}  // namespace phalanx
