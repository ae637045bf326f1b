// What two config.ini texts say differently, and what that means to a run that goes on.
#include "core/train/config_changes.h"

#include <gmock/gmock.h>

namespace phalanx {
namespace {

using Kind = ConfigChange::Kind;
using testing::ElementsAre;
using testing::FieldsAre;
using testing::IsEmpty;

constexpr char kBefore[] =
    "# Configuration of a phalanx run; `--config` reads it back.\n"
    "\n[Model]\n"
    "num-layers = 16  # default: 12\n"
    "hidden-size = 768\n"
    "\n[Initialisation and loss]\n"
    "z-loss-coeff = 0.0001\n"
    "\n[Data]\n"
    "data-path = 0.3 \"a = b\" 0.7 \"c # d\"  # default: empty\n"
    "split = 969,30,1\n"
    "\n[Training]\n"
    "seed = 1234\n"
    "precision = bf16\n"
    "run-dir = run  # default: empty\n"
    "exit-signals = SIGINT SIGTERM\n"
    "tokenizer-note =\n";

std::string with(const std::string& from, const std::string& to) {
  std::string text = kBefore;
  const size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return text.replace(place, from.size(), to);
}

TEST(ConfigChanges, NoneBetweenEqualTexts) {
  EXPECT_THAT(config_changes(kBefore, kBefore), IsEmpty());
  // Comments, blank lines and the order of options say nothing.
  EXPECT_THAT(config_changes(kBefore, with("# Configuration of", "# x = 3,")), IsEmpty());
  EXPECT_THAT(config_changes(kBefore, with("16  # default: 12", "16")), IsEmpty());
  EXPECT_THAT(config_changes(kBefore, with("hidden-size = 768\n", "\n\nhidden-size = 768\n")),
              IsEmpty());
  EXPECT_THAT(config_changes(kBefore, with("seed = 1234\nprecision = bf16\n",
                                           "precision = bf16\nseed = 1234\n")),
              IsEmpty());
}

TEST(ConfigChanges, SayWhatAChangeMeans) {
  const auto change = [](const char* from, const char* to) {
    return config_changes(kBefore, with(from, to));
  };
  EXPECT_THAT(change("= 768", "= 1024  # default: 768"),
              ElementsAre(FieldsAre("hidden-size", "768", "1024", Kind::identity)));
  EXPECT_THAT(change("969,30,1", "90,10"),
              ElementsAre(FieldsAre("split", "969,30,1", "90,10", Kind::identity)));
  EXPECT_THAT(change("1234", "1235"),
              ElementsAre(FieldsAre("seed", "1234", "1235", Kind::identity)));
  EXPECT_THAT(change("0.0001", "0"),
              ElementsAre(FieldsAre("z-loss-coeff", "0.0001", "0", Kind::numeric)));
  EXPECT_THAT(change("= bf16", "= fp32"),
              ElementsAre(FieldsAre("precision", "bf16", "fp32", Kind::numeric)));
  EXPECT_THAT(change("= run  ", "= other  "),
              ElementsAre(FieldsAre("run-dir", "run", "other", Kind::harmless)));
}

TEST(ConfigChanges, ListsAndQuotedValuesAreWholeValues) {
  EXPECT_THAT(config_changes(kBefore, with("\"c # d\"", "\"c # e\"")),
              ElementsAre(FieldsAre("data-path", "0.3 \"a = b\" 0.7 \"c # d\"",
                                    "0.3 \"a = b\" 0.7 \"c # e\"", Kind::identity)));
  EXPECT_THAT(config_changes(kBefore, with("0.3 \"a = b\" 0.7", "0.7 \"a = b\" 0.3")).size(), 1);
  EXPECT_THAT(config_changes(kBefore, with("SIGINT SIGTERM", "SIGTERM  # default: SIGINT SIGTERM")),
              ElementsAre(FieldsAre("exit-signals", "SIGINT SIGTERM", "SIGTERM", Kind::harmless)));
}

TEST(ConfigChanges, EmptyValuesAreEmpty) {
  EXPECT_THAT(config_changes(kBefore, with("exit-signals = SIGINT SIGTERM",
                                           "exit-signals =  # default: SIGINT SIGTERM")),
              ElementsAre(FieldsAre("exit-signals", "SIGINT SIGTERM", "", Kind::harmless)));
  EXPECT_THAT(config_changes(kBefore, with("tokenizer-note =", "tokenizer-note = x")),
              ElementsAre(FieldsAre("tokenizer-note", "", "x", Kind::harmless)));
  EXPECT_THAT(config_changes(kBefore, with("tokenizer-note =\n", "")), IsEmpty());
}

TEST(ConfigChanges, OptionsThatOneLacksAreEmptyThere) {
  EXPECT_THAT(config_changes(kBefore, with("split = 969,30,1\n", "")),
              ElementsAre(FieldsAre("split", "969,30,1", "", Kind::identity)));
  EXPECT_THAT(config_changes(with("precision = bf16\n", ""), kBefore),
              ElementsAre(FieldsAre("precision", "", "bf16", Kind::numeric)));
  EXPECT_THAT(config_changes("", ""), IsEmpty());
  EXPECT_EQ(config_changes("", kBefore).size(), 9U);  // all but the empty one
}

TEST(ConfigChanges, ComeInTheOrderOfTheOptions) {
  std::string now = with("= 768", "= 1024");
  now.replace(now.find("16  #"), 2, "20");
  now.replace(now.find("1234"), 4, "1");
  std::vector<std::string> names;
  for (const ConfigChange& change : config_changes(kBefore, now)) names.push_back(change.name);
  EXPECT_THAT(names, ElementsAre("num-layers", "hidden-size", "seed"));
}

TEST(ConfigChanges, ChangedFromDefaultListsTheSection) {
  EXPECT_EQ(changed_from_default(kBefore, "Model"), "num-layers 16");
  EXPECT_EQ(changed_from_default(kBefore, "Training"), "run-dir run");
  EXPECT_EQ(changed_from_default(kBefore, "No such section"), "");
}

}  // namespace
}  // namespace phalanx
