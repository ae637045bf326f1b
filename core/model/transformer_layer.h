// TransformerLayer: attention and feed-forward with the norm placement of this layer.
#pragma once

#include <optional>
#include <variant>

#include "core/model/attention.h"
#include "core/model/mlp.h"
#include "core/model/moe_layer.h"
#include "core/model/rms_norm.h"

namespace phalanx {

/// With N a norm that is there or not, and "normed" the residual switches of NormPlacement:
///   a = N(x)    y  = (normed ? a : x) + No(Attention(a))
///   f = N(y)    x' = (normed ? f : y) + No(FeedForward(f)), an Mlp or a MoeLayer
/// In the last layer x' has the last copy only.
class TransformerLayer {
 public:
  struct Saved {
    RmsNorm::Saved attention_norm;
    Attention::Saved attention;
    RmsNorm::Saved attention_output_norm;
    RmsNorm::Saved feed_forward_norm;
    std::variant<Mlp::Saved, MoeLayer::Saved> feed_forward;
    RmsNorm::Saved feed_forward_output_norm;
  };
  TransformerLayer(const LayerContext& context, QueryRows query_rows);

  /// Shape of y for an input of shape x: [S, B, Kq, H].
  Shape output_shape(const Shape& x) const;
  /// y [S(/tp), B, Kq, H] and x [S(/tp), B, K, H]. Keeps views of x, not of y.
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
               const SequenceInputs& inputs) const;
  /// dx as x, dy as y; dy is used up.
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                const SequenceInputs& inputs);

  /// Index of this layer's first parameter in the store.
  int64_t first_parameter() const { return first_parameter_; }

 private:
  using FeedForward = std::variant<Mlp, MoeLayer>;

  Tensor residual(const Tensor& carried, Memory& memory) const;
  Tensor attention_part(const Tensor& x, Saved& saved, Memory& memory, const SequenceInputs& inputs,
                        Tensor& branch) const;
  void attention_backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                          const SequenceInputs& inputs);
  void feed_forward_backward(const Tensor& dy, const Saved& saved, Memory& memory,
                             const SequenceInputs& inputs);

  Backend& ops_;
  NormPlacement placement_;
  QueryRows query_rows_;
  int64_t copies_;
  int64_t first_parameter_;
  std::optional<RmsNorm> attention_norm_;
  Attention attention_;
  std::optional<RmsNorm> attention_output_norm_;
  std::optional<RmsNorm> feed_forward_norm_;
  FeedForward feed_forward_;
  std::optional<RmsNorm> feed_forward_output_norm_;
};

}  // namespace phalanx
