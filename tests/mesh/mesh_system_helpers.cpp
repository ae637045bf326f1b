// A training system put together by hand.
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {

MicroBatch make_micro_batch(const LayoutCase& layout, int64_t index,
                            const std::function<bool(int64_t, int64_t)>& masked) {
  const Philox random(layout.seed, fmt::format("micro-batch {}", index));
  MicroBatch batch{.positions = layout.shape.positions, .sequences = layout.shape.sequences};
  const auto draw = [&](int64_t i) {
    return static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) *
                                static_cast<double>(layout.model.vocab_size));
  };
  for (int64_t i = 0; i < batch.positions * batch.sequences; ++i) {
    batch.tokens.push_back(draw(2 * i));
    const bool hidden = masked && masked(i / batch.sequences, i % batch.sequences);
    batch.targets.push_back(hidden ? kIgnoreTarget : draw(2 * i + 1));
  }
  return batch;
}

MeshSystem::MeshSystem(const LayoutCase& layout_case, const ParallelConfig& parallel,
                       ProcessGroups process_groups)
    : layout(layout_case),
      groups(std::move(process_groups)),
      stage(layout.model, store, backend, groups,
            stage_options(layout.model, parallel, layout.shape.positions, groups.pp->rank())),
      options(gradient_options(stage, parallel)),
      gradients((store.allocate(backend, layout.dtype, options.units), store), backend, groups,
                options),
      optimizer(store, gradients, backend, groups, layout.optimizer) {
  for (int64_t i = 0; i < store.size(); ++i)
    if (store[i].value.data != nullptr) backend.fill(store[i].value, -1.0);
  stage.set_units(gradients.units());
  optimizer.initialise(layout.seed);
  const auto schedule =
      make_schedule(parallel.pipeline_schedule,
                    {.stage = groups.pp->rank(),
                     .num_stages = groups.pp->size(),
                     .num_chunks = stage.num_chunks(),
                     .num_micro_batches = layout.num_micro_batches / groups.dp->size()});
  slots = slots_of(schedule, stage.num_chunks());
  stage.allocate(layout.shape, layout.dtype, slots);
  state_.emplace(TrainState{.config = {.optimizer = layout.optimizer,
                                       .train_iters = layout.num_steps,
                                       .z_loss_coeff = layout.model.z_loss_coeff,
                                       .num_layers = layout.model.num_layers},
                            .pipeline = {schedule, *groups.pp, stage.num_chunks()},
                            .stage = stage,
                            .gradients = gradients,
                            .optimizer = optimizer,
                            .groups = groups});
}

StepMetrics MeshSystem::step(const std::vector<MicroBatch>& global_batch) {
  GlobalBatch batch{.num_samples =
                        static_cast<int64_t>(global_batch.size()) * layout.shape.sequences};
  for (size_t m = static_cast<size_t>(groups.dp->rank()); m < global_batch.size();
       m += static_cast<size_t>(groups.dp->size()))
    batch.micro_batches.push_back(global_batch[m]);
  return step_of_shard(batch);
}

TrafficSnapshot::TrafficSnapshot(const ProcessGroup& process_group) : group_(process_group) {
  for (int i = 0; i < kNumCollectives; ++i)
    begin_.push_back(group_.traffic(static_cast<Collective>(i)));
}

Traffic TrafficSnapshot::since(Collective operation) const {
  const Traffic& begin = begin_[static_cast<size_t>(operation)];
  const Traffic& now = group_.traffic(operation);
  return {.calls = now.calls - begin.calls, .bytes = now.bytes - begin.bytes};
}

}  // namespace phalanx::test
