// SPDX-License-Identifier: Apache-2.0
// The machine that executes a thread block of a CUDA kernel on a CPU, for tests.
//
// Every thread of a block is a fiber with a stack of its own. A fiber runs until it needs others (an
// instruction of a whole warp, a barrier); the last to arrive does the work for all. So nothing is faster or
// slower than it looks: which warp runs first is the test's choice (`Machine::order`), and whatever must not
// depend on it can be tried.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline dim3 threadIdx, blockIdx;

namespace emulation {

constexpr int kLanes = 32;
constexpr int kGroupThreads = 128;  // a warpgroup
// Where dynamic shared memory begins: not at a multiple of more than 128, which is all that is promised.
constexpr std::uint32_t kSharedBase = 1152;
#if defined(EMULATED_HOPPER)
constexpr int kMostShared = 227 * 1024;  // bytes that a kernel may ask for
#else
constexpr int kMostShared = 99 * 1024;  // the limit of sm_86 and sm_89
#endif
constexpr std::size_t kStackBytes = 256 * 1024;

// What a warp, or all warps of a block, are waiting for together.
struct Rendezvous {
  int arrived = 0;
  unsigned rounds = 0;
  int kind = -1;  // of the instruction that the first to arrive is at
};

struct Copy {
  std::uint32_t shared;
  const void* global;
  int bytes;
};

struct Thread {
  ucontext_t start;
  jmp_buf at;
  std::vector<unsigned char> stack;
  bool started, done;
  const Rendezvous* waits_for;
  unsigned round;
  std::vector<std::vector<Copy>> groups;  // cp.async: closed ones, then the open one
  bool fenced;                            // wgmma.fence since the last wait
};

// An mbarrier of shared memory. `phases.rounds` counts completed phases.
struct Mbarrier {
  int arrivals, pending;
  std::int64_t bytes;  // announced and not yet there
  Rendezvous phases;
};

// wgmma of a warpgroup: operations since the last commit, and committed groups of them, not yet carried out.
struct Products {
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
  Rendezvous waits;  // that have ended
};

enum class Order { forward, backward, random };

struct Machine {
  // The test's choice.
  Order order = Order::forward;
  std::vector<std::pair<const unsigned char*, std::size_t>> readable;  // what cp.async may read
  // What the test may look at.
  std::string error;
  std::int64_t bank_conflicts = 0, mma = 0, copies = 0, wgmma = 0, boxes = 0;
  std::size_t largest_shared = 0;
  std::vector<std::array<unsigned, 7>> launches;  // grid, block, bytes of dynamic shared memory

  std::vector<Thread> threads;
  std::vector<Rendezvous> warps;
  std::vector<std::vector<unsigned char>> inputs, outputs;  // of the instruction of a warp, 64 bytes per lane
  Rendezvous block;
  std::vector<Rendezvous> groups;      // warpgroups
  std::map<int, Rendezvous> barriers;  // named ones
  std::map<std::uint32_t, Mbarrier> mbarriers;
  std::vector<std::function<void()>> late;  // bulk copies, and products that are waited for
  std::vector<Products> products;           // of each warpgroup
  std::map<std::uint32_t, int> unfenced;    // 16 bytes that a thread stored and did not fence since
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
  std::function<void()> kernel;
  jmp_buf scheduler;
  int current = 0;
  std::uint32_t random = 1;

  static Machine& get() {
    static Machine machine;
    return machine;
  }
  std::size_t group() const { return static_cast<std::size_t>(current / kGroupThreads); }
  Thread& thread() { return threads[static_cast<std::size_t>(current)]; }
  int warp() const { return current / kLanes; }
  int lane() const { return current % kLanes; }

  // What a launch starts with; the counters go on.
  void reset() { error.clear(), shared_bytes = 0; }

  // Gives up the whole grid. Does not return.
  [[noreturn]] void fail(const std::string& why) {
    if (error.empty()) error = why + " (thread " + std::to_string(current) + ")";
    _longjmp(scheduler, 2);
  }

  // Waits until `event` has had another round than `round`.
  void wait(const Rendezvous& event, unsigned round) {
    Thread& mine = thread();
    mine.waits_for = &event;
    mine.round = round;
    if (_setjmp(mine.at) == 0) _longjmp(scheduler, 1);
  }

  // Lets one of what is late happen: the one that the test's order picks. False if there is nothing.
  bool deliver() {
    if (late.empty()) return false;
    const std::size_t count = late.size();
    random = random * 1664525u + 1013904223u;
    const std::size_t chosen = order == Order::forward    ? 0
                               : order == Order::backward ? count - 1
                                                          : (random >> 16) % count;
    const std::function<void()> happen = late[chosen];
    late.erase(late.begin() + static_cast<std::ptrdiff_t>(chosen));
    happen();
    return true;
  }

  // Waits until `count` threads are here; the last one runs `work`.
  template <class Work>
  void meet(Rendezvous& meeting, int kind, int count, Work work) {
    if (meeting.arrived && meeting.kind != kind)
      fail("threads of a warp or block are at different instructions");
    meeting.kind = kind;
    const unsigned round = meeting.rounds;
    if (++meeting.arrived == count) {
      work();
      meeting.arrived = 0;
      ++meeting.rounds;
      return;
    }
    wait(meeting, round);
  }

  // An instruction of a whole warp: `work(in, out)` maps the lanes' inputs to their outputs.
  template <class In, class Out, class Work>
  Out warp_instruction(int kind, const In& in, Work work) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64, "room per lane");
    const auto w = static_cast<std::size_t>(warp());
    const int at = lane();
    std::memcpy(inputs[w].data() + 64 * at, &in, sizeof in);
    meet(warps[w], kind, kLanes, [&] {
      In all[kLanes];
      Out result[kLanes];
      for (int i = 0; i < kLanes; ++i) std::memcpy(&all[i], inputs[w].data() + 64 * i, sizeof(In));
      work(all, result);
      for (int i = 0; i < kLanes; ++i) std::memcpy(outputs[w].data() + 64 * i, &result[i], sizeof(Out));
    });
    Out out;
    std::memcpy(&out, outputs[w].data() + 64 * at, sizeof out);
    return out;
  }

  bool ready(const Thread& t) const { return !t.done && (!t.waits_for || t.waits_for->rounds != t.round); }

  // The next fiber to run, or -1. The other lanes of a warp come first, then the warp that the test's order
  // picks.
  int next() {
    for (int t = current + 1; t % kLanes; ++t) {
      if (ready(threads[static_cast<std::size_t>(t)])) return t;
    }
    const int count = static_cast<int>(warps.size());
    random = random * 1664525u + 1013904223u;
    const int shift = order == Order::random ? static_cast<int>(random >> 16) % count : 0;
    for (int i = 0; i < count; ++i) {
      const int w = order == Order::backward ? count - 1 - i : (i + shift) % count;
      for (int l = 0; l < kLanes; ++l) {
        if (ready(threads[static_cast<std::size_t>(w * kLanes + l)])) return w * kLanes + l;
      }
    }
    return -1;
  }

  static void enter() {
    Machine& machine = get();
    machine.kernel();
    machine.thread().done = true;
    _longjmp(machine.scheduler, 1);
  }

  void run_block(int thread_count) {
    threads.resize(static_cast<std::size_t>(thread_count));
    warps.assign(static_cast<std::size_t>(thread_count / kLanes), {});
    inputs.assign(warps.size(), std::vector<unsigned char>(64 * kLanes));
    outputs = inputs;
    block = {};
    const auto warpgroups = static_cast<std::size_t>((thread_count + kGroupThreads - 1) / kGroupThreads);
    groups.assign(warpgroups, {});
    products.assign(warpgroups, {});
    barriers.clear(), mbarriers.clear(), late.clear(), unfenced.clear();
    current = 0;
    memory.assign(shared_bytes + 128, 0xFF);  // NaN to any kernel that reads what nobody wrote
    shared = memory.data() + (128 - reinterpret_cast<std::uintptr_t>(memory.data()) % 128) % 128;
    for (Thread& t : threads) {
      t.started = t.done = t.fenced = false;
      t.waits_for = nullptr;
      t.groups.assign(1, {});
      t.stack.resize(kStackBytes);
      getcontext(&t.start);
      t.start.uc_stack.ss_sp = t.stack.data();
      t.start.uc_stack.ss_size = t.stack.size();
      t.start.uc_link = nullptr;
      makecontext(&t.start, &Machine::enter, 0);
    }
    while (error.empty()) {
      const int chosen = next();
      if (chosen < 0) {
        if (deliver()) continue;  // no thread can go on without it
        break;
      }
      current = chosen;
      threadIdx = dim3(static_cast<unsigned>(chosen), 0, 0);
      Thread& t = thread();
      t.waits_for = nullptr;
      if (_setjmp(scheduler) == 0) {
        if (t.started) _longjmp(t.at, 1);
        t.started = true;
        setcontext(&t.start);
      }
    }
    for (const Thread& t : threads) {
      if (!t.done && error.empty())
        error = "deadlock: threads wait for others that have ended or wait elsewhere";
      for (const auto& group : t.groups) {
        if (!group.empty() && error.empty()) error = "a block ended while its copies were under way";
      }
    }
    for (const Products& group : products) {
      if (!(group.open.empty() && group.groups.empty()) && error.empty())
        error = "a block ended while its products were under way";
    }
  }
};

}  // namespace emulation
