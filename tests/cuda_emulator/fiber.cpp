// The switch between fibers in x86-64 assembly, because ucontext's makes two system calls per
// switch and Boost.Context would be a library more for thirty lines.
#include "tests/cuda_emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PHALANX_EMULATOR_ASAN 1
#endif

#if !defined(__x86_64__)
#error "the CUDA emulator's fibers are written for x86-64"
#endif

// Saves what the System V ABI lets a callee keep, swaps stacks, restores. The control words of the
// floating-point units are left alone: kernels do not change them.
asm(R"(
.text
.p2align 4
.globl phalanx_emulator_switch
.type phalanx_emulator_switch, @function
phalanx_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size phalanx_emulator_switch, . - phalanx_emulator_switch
.globl phalanx_emulator_start
.type phalanx_emulator_start, @function
phalanx_emulator_start:
  movq %rbx, %rdi
  call phalanx_emulator_enter
  ud2
.size phalanx_emulator_start, . - phalanx_emulator_start
)");

extern "C" {
void phalanx_emulator_switch(void** save, void* load);
void phalanx_emulator_start();
void phalanx_emulator_enter(phalanx::emulator::Fiber* fiber) {
  fiber->enter();
}
}

namespace phalanx::emulator {
namespace {
#ifdef PHALANX_EMULATOR_ASAN
constexpr size_t kStackBytes = 512 << 10;  // red zones make frames several times larger
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;
// Stacks start at different distances from a page, because the caches put all addresses that are
// equal modulo 4 KiB into the same few places: with equal starts each switch misses.
constexpr size_t kColours = 61;
constexpr size_t kColourBytes = 320;
thread_local size_t number_of_fibers = 0;
}  // namespace

void switch_context(Context& from, Context& to) {
#ifdef PHALANX_EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_bytes);
#endif
  phalanx_emulator_switch(&from.stack_pointer, to.stack_pointer);
#ifdef PHALANX_EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

Fiber::Fiber(Entry entry, void* argument) : entry_(entry), argument_(argument) {
  block_ = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(block_, kGuardBytes, PROT_NONE);
  stack_bottom = static_cast<char*>(block_) + kGuardBytes;
  stack_bytes = kStackBytes;
  colour_ = number_of_fibers++ % kColours * kColourBytes;
  reset();
}

Fiber::~Fiber() {
#ifdef PHALANX_EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_bottom, stack_bytes);
#endif
  munmap(block_, kStackBytes + kGuardBytes);
}

void Fiber::reset() {
  char* top = static_cast<char*>(block_) + kGuardBytes + kStackBytes - colour_;
#ifdef PHALANX_EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_bottom, stack_bytes);
  fake_stack = nullptr;
#endif
  // From the top: a word of padding that makes calls aligned, no return address (ends back traces),
  // where to start, and the registers, of which rbx carries `this`.
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(&phalanx_emulator_start);
  for (int i = 0; i < kSavedRegisters; ++i) *--slot = nullptr;
  slot[4] = this;  // popped into rbx: r15, r14, r13, r12, rbx, rbp
  stack_pointer = slot;
}

void Fiber::enter() {
#ifdef PHALANX_EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  entry_(argument_);
  std::abort();
}

void describe_host_stack(Context& context) {
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
  void* bottom = nullptr;
  pthread_attr_getstack(&attributes, &bottom, &context.stack_bytes);
  context.stack_bottom = bottom;
  pthread_attr_destroy(&attributes);
}

}  // namespace phalanx::emulator
