// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/frame_attention.cu and its schedule, for python_tests/test_cuda_frame_attention.py through
// ctypes.
#include "cuda/frame_attention.cu"

#include <algorithm>
#include <limits>

using namespace ardiff;

extern "C" {

struct Problem {
  const void *q, *k, *v;
  void* o;
  float* lse;
  const std::int32_t *frame_ptr, *group_ptr, *page_ptr, *pages, *valid, *seen;
  const float* bias;
  std::int64_t groups, heads, kv_heads, dim, num_pages;
  std::int64_t q_bytes, pool_bytes;
  std::int64_t q_strides[2], k_strides[3], v_strides[3];
  double scale;
  std::int32_t storage, multiprocessors, order;
};

struct Outcome {
  std::int32_t status, flags, tile_rows, parts;
  std::int64_t bank_conflicts, mma, copies, largest_shared;
  char error[256];
};

void emulate_frame_attention(const Problem* problem, Outcome* outcome) {
  const Problem& x = *problem;
  FrameAttentionParams p{};
  p.q = static_cast<const float*>(x.q);
  p.k = static_cast<const float*>(x.k);
  p.v = static_cast<const float*>(x.v);
  p.o = static_cast<float*>(x.o);
  p.lse = x.lse;
  p.frame_ptr = x.frame_ptr;
  p.group_ptr = x.group_ptr;
  p.page_ptr = x.page_ptr;
  p.pages = x.pages;
  p.valid = x.valid;
  p.seen = x.seen;
  p.bias = x.bias;
  p.groups = x.groups;
  p.heads = x.heads;
  p.kv_heads = x.kv_heads;
  p.dim = x.dim;
  p.num_pages = x.num_pages;
  p.q_token = x.q_strides[0];
  p.q_head = x.q_strides[1];
  p.k_page = x.k_strides[0];
  p.k_head = x.k_strides[1];
  p.k_row = x.k_strides[2];
  p.v_page = x.v_strides[0];
  p.v_head = x.v_strides[1];
  p.v_row = x.v_strides[2];
  p.scale = static_cast<float>(x.scale);

  auto& machine = emulation::Machine::get();
  machine = emulation::Machine();
  machine.order = static_cast<emulation::Order>(x.order);
  const auto add = [&](const void* begin, std::int64_t bytes) {
    machine.readable.emplace_back(static_cast<const unsigned char*>(begin), static_cast<std::size_t>(bytes));
  };
  add(x.q, x.q_bytes);
  add(x.k, x.pool_bytes);
  add(x.v, x.pool_bytes);

  const HostFrameTable table{x.frame_ptr, x.group_ptr, x.page_ptr, x.valid, x.seen, x.groups};
  const AttentionPlan plan = plan_attention(table, x.heads, x.kv_heads, x.multiprocessors);
  std::vector<float> partials(static_cast<std::size_t>(partial_floats(plan.sizes, x.kv_heads, x.dim)),
                              std::numeric_limits<float>::quiet_NaN());
  std::int32_t flags = 0;
  const AttentionWork work =
      attention_work(plan.sizes, plan.buffer.data(), partials.data(), &flags, x.kv_heads, x.dim);
  *outcome = {};
  outcome->status = cuda::frame_attention(p, static_cast<Storage>(x.storage), work, nullptr);
  outcome->flags = flags;
  outcome->tile_rows = plan.sizes.tile_rows;
  outcome->parts = plan.sizes.parts;
  outcome->bank_conflicts = machine.bank_conflicts;
  outcome->mma = machine.mma;
  outcome->copies = machine.copies;
  outcome->largest_shared = static_cast<std::int64_t>(machine.largest_shared);
  std::strncpy(outcome->error, machine.error.c_str(), sizeof outcome->error - 1);
}

// The plan alone. `buffer` has room for `room` integers; returns how many there are. sizes: as in
// AttentionPlanSizes.
std::int64_t plan_frame_attention(const std::int32_t* const table[5], std::int64_t groups, std::int64_t heads,
                                  std::int64_t kv_heads, std::int32_t multiprocessors, std::int64_t room,
                                  std::int32_t* buffer, std::int32_t* sizes) {
  const HostFrameTable host{table[0], table[1], table[2], table[3], table[4], groups};
  const AttentionPlan plan = plan_attention(host, heads, kv_heads, multiprocessors);
  const auto count = static_cast<std::int64_t>(plan.buffer.size());
  if (count <= room) std::copy(plan.buffer.begin(), plan.buffer.end(), buffer);
  std::memcpy(sizes, &plan.sizes, sizeof plan.sizes);
  return count;
}
}
