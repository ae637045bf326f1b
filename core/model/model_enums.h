// The named choices of a model: copies, norm placement, initialisation; with the words that options
// use for them.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "kernels/base/enum_names.h"

namespace phalanx {

/// How copies of a token see each other (PHD-Transformer): naive repetition, base PHD (Eq. 2),
/// sliding window, chunk-wise sliding window.
enum class PhdMode : uint8_t { naive, phd, swa, cswa };
template <>
struct EnumNames<PhdMode> {
  static constexpr std::pair<PhdMode, std::string_view> table[] = {{PhdMode::naive, "naive"},
                                                                   {PhdMode::phd, "phd"},
                                                                   {PhdMode::swa, "swa"},
                                                                   {PhdMode::cswa, "cswa"}};
};

/// Named norm placements; each is a setting of NormPlacement per layer (see norm_placement()).
enum class NormScheme : uint8_t {
  pre_norm,
  post_norm,
  pre_qk_norm,
  hybrid_norm,
  hybrid_norm_star,
  pre_post,
  post_pre,
  hybrid_norm_7b,
  olmo2
};
template <>
struct EnumNames<NormScheme> {
  static constexpr std::pair<NormScheme, std::string_view> table[] = {
      {NormScheme::pre_norm, "pre-norm"},
      {NormScheme::post_norm, "post-norm"},
      {NormScheme::pre_qk_norm, "pre-qk-norm"},
      {NormScheme::hybrid_norm, "hybridnorm"},
      {NormScheme::hybrid_norm_star, "hybridnorm-star"},
      {NormScheme::pre_post, "pre-post"},
      {NormScheme::post_pre, "post-pre"},
      {NormScheme::hybrid_norm_7b, "hybridnorm-7b"},
      {NormScheme::olmo2, "olmo2"}};
};

/// Standard deviations of the linear layers. normal: sigma everywhere; depth_scaled: outputs of
/// layer l (0-based) by sigma / sqrt(2 (l + 1)); megatron: outputs by sigma / sqrt(2 L).
enum class InitScheme : uint8_t { normal, depth_scaled, megatron };
template <>
struct EnumNames<InitScheme> {
  static constexpr std::pair<InitScheme, std::string_view> table[] = {
      {InitScheme::normal, "normal"},
      {InitScheme::depth_scaled, "depth-scaled"},
      {InitScheme::megatron, "megatron"}};
};

/// A setting that is taken from the norm scheme unless the user says otherwise.
enum class Override : uint8_t { automatic, on, off };
template <>
struct EnumNames<Override> {
  static constexpr std::pair<Override, std::string_view> table[] = {
      {Override::automatic, "auto"}, {Override::on, "on"}, {Override::off, "off"}};
};

}  // namespace phalanx
