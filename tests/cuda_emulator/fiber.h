// Fibers: threads of a block as contexts that one host thread switches between.
#pragma once

#include <cstddef>

namespace phalanx::emulator {

/// A place to switch to: a host thread's own stack, or a Fiber.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;  // for AddressSanitizer, as are the next two
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

/// Leaves `from` for `to`; returns when somebody switches back to `from`.
void switch_context(Context& from, Context& to);

/// Notes where the calling host thread's own stack is.
void describe_host_stack(Context& context);

/// A context with a stack of its own, guarded against overflow. `entry(argument)` must not return.
class Fiber : public Context {
 public:
  using Entry = void (*)(void* argument);
  Fiber(Entry entry, void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  /// Starts again from `entry` at the next switch; what was on the stack is forgotten.
  void reset();

  /// Only for the machine's start code.
  [[noreturn]] void enter();

 private:
  Entry entry_;
  void* argument_;
  void* block_ = nullptr;
  size_t colour_ = 0;  // bytes left free at the top of the stack
};

}  // namespace phalanx::emulator
