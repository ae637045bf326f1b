// Sums over a few ranks by messages.
#include "parallel/gradient_sum.h"

#include <algorithm>

namespace phalanx {

void GradientSum::operator()(ProcessGroup& group, const std::vector<int>& ranks,
                             const Tensor& gradient) {
  if (ranks.size() == 1) return;
  check(std::find(ranks.begin(), ranks.end(), group.rank()) != ranks.end(), "group ", group.name(),
        ": rank ", group.rank(), " is not among the ranks whose gradients it sums");
  if (!received_) received_ = ops_.allocate(kBytes);
  const Tensor flat = gradient.view({gradient.numel()});
  for (int64_t begin = 0; begin < flat.numel(); begin += kPieceElements)
    sum_piece(group, ranks, flat.slice(begin, std::min(begin + kPieceElements, flat.numel())));
}

void GradientSum::sum_piece(ProcessGroup& group, const std::vector<int>& ranks,
                            const Tensor& piece) {
  const int lowest = ranks.front();
  if (group.rank() != lowest) {
    const Exchange sent[] = {{.peer = lowest, .send = piece, .receive = {}}};
    group.exchange(sent);
    const Exchange back[] = {{.peer = lowest, .send = {}, .receive = piece}};
    group.exchange(back);
    return;
  }
  const Tensor received{received_.get(), piece.shape, piece.dtype, piece.device};
  for (size_t i = 1; i < ranks.size(); ++i) {
    const Exchange message[] = {{.peer = ranks[i], .send = {}, .receive = received}};
    group.exchange(message);
    ops_.add(piece, piece, received);
  }
  std::vector<Exchange> back;
  for (size_t i = 1; i < ranks.size(); ++i)
    back.push_back({.peer = ranks[i], .send = piece, .receive = {}});
  group.exchange(back);
}

}  // namespace phalanx
