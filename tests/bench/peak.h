// The machine's arithmetic peak, measured: what a benchmark's rate is a fraction of.
#pragma once

#include <string>

namespace phalanx {

/// FLOP/s of `threads` threads that do nothing but f32 fused multiply-adds on full registers; the
/// best of several short rounds, because other load on the machine only ever lowers it.
double measure_f32_peak(int threads);

/// FLOP/s of bf16 dot products into f32 (vdpbf16ps); 0 where this build has no such instruction.
double measure_bf16_peak(int threads);

/// The processor's name as the kernel tells it.
std::string processor_name();

}  // namespace phalanx
