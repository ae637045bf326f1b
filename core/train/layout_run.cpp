// Puts a training system together.
#include "core/train/layout_run.h"

#include "core/train/memory_needs.h"

namespace phalanx {

LayoutRun::LayoutRun(const LayoutCase& which, const ParallelConfig& parallel, Backend& backend,
                     ProcessGroups& groups)
    : which_(which),
      groups_(groups),
      stage_(which.model, store_, backend, groups,
             stage_options(which.model, parallel, which.shape.positions, groups.pp->rank())),
      options_(gradient_options(stage_, parallel)),
      gradients_((store_.allocate(backend, which.dtype, options_.units), store_), backend, groups,
                 options_),
      optimizer_(store_, gradients_, backend, groups, which.optimizer) {
  stage_.set_units(gradients_.units());
  optimizer_.initialise(which.seed);
  const auto schedule =
      make_schedule(parallel.pipeline_schedule,
                    {.stage = groups.pp->rank(),
                     .num_stages = groups.pp->size(),
                     .num_chunks = stage_.num_chunks(),
                     .num_micro_batches = which.num_micro_batches / groups.dp->size()});
  slots_ = slots_of(schedule, stage_.num_chunks());
  stage_.allocate(which.shape, which.dtype, slots_);
  state_.emplace(TrainState{.config = {.optimizer = which.optimizer,
                                       .train_iters = which.num_steps,
                                       .z_loss_coeff = which.model.z_loss_coeff,
                                       .num_layers = which.model.num_layers},
                            .pipeline = {schedule, *groups.pp, stage_.num_chunks()},
                            .stage = stage_,
                            .gradients = gradients_,
                            .optimizer = optimizer_,
                            .groups = groups_});
}

StepMetrics LayoutRun::step(const std::vector<MicroBatch>& global_batch) {
  GlobalBatch batch{.num_samples =
                        static_cast<int64_t>(global_batch.size()) * which_.shape.sequences};
  for (size_t m = static_cast<size_t>(groups_.dp->rank()); m < global_batch.size();
       m += static_cast<size_t>(groups_.dp->size()))
    batch.micro_batches.push_back(global_batch[m]);
  return step_of_shard(batch);
}

}  // namespace phalanx
