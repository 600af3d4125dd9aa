// SPDX-License-Identifier: Apache-2.0
// Linear layer: x [T, K], W [N, K] in packed panels of 48 outputs, or transposed -> y [T, N], with bias and
// an activation or a gated residual applied in registers.
//
// Work 2 T N K FLOPs. Floor: at T tokens a weight is used T times, so below about 25 tokens (16 FLOPs a cycle
// and byte of memory rate) reading the weights once, 4 N K bytes, takes longer than the arithmetic.
//
// A register tile holds kTileRows rows of x times one panel piece of kPieces vectors: with AVX-512 8 x 48 (24
// accumulators, 3 weight vectors, broadcasts from memory), with AVX2 6 x 16, of which 256 inputs are 16 KB in
// whole cache lines; 4 x 24 would touch 32 KB, all of an L1 cache. A range of a panel stays in L1/L2 while
// all rows of a block pass over it. The next one is prefetched meanwhile, and no more: it would push out what
// an L2 cache of 512 KB holds. A thread works on a range of (row block, panel): few rows are split by panels,
// so that every weight is read by one thread only.
//
// Of a transposed weight, the rows of a piece lie far apart: reading them once for every tile of rows would
// miss the L1 cache. So the first tile of a block keeps a copy for the others; its stores hide behind FMAs.
//
// Each output is a chain of FMAs over each range of at most kMostInputs inputs in ascending order; the sums
// of the ranges are added in order, then the bias, then the epilogue: its bits depend on its own row of x and
// on nothing else, neither the number of rows nor the threads. That is why the engine does not use BLAS here.
#include "ardiff/linear.h"

#include <utility>

#include "ardiff/gate_residual.h"
#include "gelu_simd.h"
#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

#if defined(ARDIFF_ISA_avx512)
constexpr int kTileRows = 8, kPieces = 3;  // rows and vectors of a register tile
#elif defined(ARDIFF_ISA_avx2)
constexpr int kTileRows = 6, kPieces = 2;
#else
constexpr int kTileRows = 4, kPieces = 3;
#endif
constexpr int kPieceOutputs = kPieces * Vec::width;
static_assert(kPanelOutputs % kPieceOutputs == 0);
constexpr std::int64_t kMostInputs = 256;  // of a range: its piece of a panel stays in the L1 cache
// Rows of x that stay in the L2 cache while panels pass: at least 128, in whole tiles.
constexpr std::int64_t kBlockRows = (128 + kTileRows - 1) / kTileRows * kTileRows;

// What a register tile works on: one piece of a panel and a range of inputs.
struct Piece {
  const float* weights;  // of the first input of the range, `stride` floats per input
  std::int64_t stride;
  std::int64_t output;      // its first output
  std::int64_t begin, end;  // inputs
  float* sums;              // [row of the block][kPieceOutputs]: what earlier ranges gave
  const float* ahead;       // prefetched while this one is worked on, `step` floats per input
  std::int64_t step;
  float* copy;  // [input][kPieceOutputs]: where a tile that copies the weights puts them
};

template <int R>
ARDIFF_SIMD void finish(const LinearParams& p, std::int64_t row, std::int64_t output,
                        const Vec (&acc)[R][kPieces]) {
#pragma GCC unroll 3
  for (int v = 0; v < kPieces; ++v) {
    const std::int64_t column = output + v * Vec::width, left = p.outputs - column;
    if (left <= 0) return;
    const int n = left < Vec::width ? static_cast<int>(left) : Vec::width;
    const Vec bias = p.bias ? load_n(p.bias + column, n) : set(0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec z = acc[r][v] + bias;
      const std::int64_t at = (row + r) * p.outputs + column;
      if (p.epilogue == LinearEpilogue::gelu) z = gelu(z);
      if (p.epilogue == LinearEpilogue::gelu_erf) z = gelu_erf(z);
      if (p.epilogue == LinearEpilogue::silu) z = silu(z);
      if (p.epilogue == LinearEpilogue::gated && !p.gate) z = load_n(p.residual + at, n) + z;
      if (p.epilogue == LinearEpilogue::gated && p.gate) {
        const float* gate = p.gate + p.frame_ids[row + r] * p.gate_stride + column;
        z = gated(load_n(p.residual + at, n), load_n(gate, n), z);
      }
      store_n(p.y + at, z, n);
    }
  }
}

template <int R, bool Copies = false>
ARDIFF_SIMD void tile(const LinearParams& p, const Piece& piece, std::int64_t block, std::int64_t row) {
  Vec acc[R][kPieces];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) acc[r][v] = set(0.0f);
  }
  // Three rows per base pointer: x86 addresses base + {0, 1, 2} * stride.
  const float* base[(R + 2) / 3];
#pragma GCC unroll 3
  for (int r = 0; r < (R + 2) / 3; ++r) base[r] = p.x + (row + 3 * r) * p.inputs + piece.begin;
  const std::int64_t stride = p.inputs, count = piece.end - piece.begin;
  const float* weights = piece.weights;
  for (std::int64_t i = 0; i < count; ++i, weights += piece.stride) {
    __builtin_prefetch(piece.ahead + i * piece.step, 0, 2);
    Vec w[kPieces];
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) {
      w[v] = load(weights + v * Vec::width);
      if constexpr (Copies) store(piece.copy + i * kPieceOutputs + v * Vec::width, w[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = set(base[r / 3][(r % 3) * stride + i]);
#pragma GCC unroll 3
      for (int v = 0; v < kPieces; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
  float* sums = piece.sums + (row - block) * kPieceOutputs;
  const bool last = piece.end == p.inputs;
  if (piece.begin > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kPieces; ++v) {
        acc[r][v] = load(sums + r * kPieceOutputs + v * Vec::width) + acc[r][v];
      }
    }
  }
  if (last) return finish<R>(p, row, piece.output, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) store(sums + r * kPieceOutputs + v * Vec::width, acc[r][v]);
  }
}

template <int R>
void last_tile(int rows, const LinearParams& p, const Piece& piece, std::int64_t block, std::int64_t row) {
  if constexpr (R > 0) {
    if (rows == R) return tile<R>(p, piece, block, row);
    last_tile<R - 1>(rows, p, piece, block, row);
  }
}

// [count][kPieceOutputs]; columns from `valid` on are 0.
ARDIFF_SIMD void copy_piece(const float* from, std::int64_t stride, std::int64_t count, std::int64_t valid,
                            float* to) {
  for (std::int64_t i = 0; i < count; ++i, from += stride, to += kPieceOutputs) {
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) {
      const std::int64_t left = valid - v * Vec::width;
      const int n = left < 0 ? 0 : left < Vec::width ? static_cast<int>(left) : Vec::width;
      store(to + v * Vec::width, load_n(from + v * Vec::width, n));
    }
  }
}

}  // namespace

void linear(const LinearParams& p) {
  const std::int64_t panels = (p.outputs + kPanelOutputs - 1) / kPanelOutputs;
  const std::int64_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  const std::int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
  const std::int64_t block_rows = blocks == 0 ? 0 : (tiles + blocks - 1) / blocks * kTileRows;
  const std::int64_t ranges = (p.inputs + kMostInputs - 1) / kMostInputs;
  const std::int64_t range = ranges == 0 ? 1 : ((p.inputs + ranges - 1) / ranges + 15) / 16 * 16;
  const std::int64_t items = blocks * panels, limit = max_threads();
  const int threads = static_cast<int>(items < limit ? items : limit);
  const bool packed = p.input_stride == kPanelOutputs && p.panel_stride != kPanelOutputs;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t item = 0; item < items; ++item) {
    alignas(64) float sums[kBlockRows * kPieceOutputs];
    alignas(64) float copied[kMostInputs * kPieceOutputs];
    const std::int64_t first = item / panels * block_rows, panel = item % panels;
    const std::int64_t end = first + block_rows < p.rows ? first + block_rows : p.rows;
    const std::int64_t passes = (end - first + kTileRows - 1) / kTileRows;
    for (std::int64_t output = 0; output < kPanelOutputs; output += kPieceOutputs) {
      const std::int64_t valid = p.outputs - (panel * kPanelOutputs + output);
      if (valid <= 0) break;
      for (std::int64_t begin = 0; begin < p.inputs; begin += range) {
        Piece piece{};
        piece.weights = p.weights + panel * p.panel_stride + begin * p.input_stride + output;
        piece.stride = p.input_stride;
        piece.output = panel * kPanelOutputs + output;
        piece.begin = begin;
        piece.end = begin + range < p.inputs ? begin + range : p.inputs;
        piece.sums = sums;
        const std::int64_t count = piece.end - begin;
        std::int64_t advance, most_advances = kPanelOutputs / 16 - 1;
        if (packed) {
          piece.ahead = piece.weights + count * kPanelOutputs;
          piece.step = passes > 3 ? 16 : 48 / passes;
          advance = count * piece.step;
        } else {
          piece.ahead = piece.end < p.inputs ? piece.weights + count * p.input_stride
                                             : p.weights + (panel + 1) * p.panel_stride;
          piece.step = p.input_stride;
          advance = 16;
          if (valid < kPieceOutputs) {
            copy_piece(piece.weights, p.input_stride, count, valid, copied);
            piece.weights = copied;
            piece.stride = kPieceOutputs;
          } else if (passes > 1) {
            piece.copy = copied;
          }
        }
        std::int64_t row = first;
        for (; row + kTileRows <= end; row += kTileRows) {
          if (piece.copy != nullptr) {
            tile<kTileRows, true>(p, piece, first, row);
            piece.weights = std::exchange(piece.copy, nullptr);
            piece.stride = kPieceOutputs;
          } else {
            tile<kTileRows>(p, piece, first, row);
          }
          if (most_advances-- > 0) piece.ahead += advance;
        }
        last_tile<kTileRows - 1>(static_cast<int>(end - row), p, piece, first, row);
      }
    }
  }
}

void pack_linear(const PackLinearParams& p) {
  const std::int64_t panels = (p.outputs + kPanelOutputs - 1) / kPanelOutputs;
  const int threads = threads_for(p.outputs * p.inputs);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    float* out = p.panels + panel * p.inputs * kPanelOutputs;
    for (std::int64_t c = 0; c < kPanelOutputs; ++c) {
      const std::int64_t output = panel * kPanelOutputs + c;
      const float* row = p.weight + output * p.weight_stride;
      for (std::int64_t i = 0; i < p.inputs; ++i) {
        out[i * kPanelOutputs + c] = output < p.outputs ? row[i] : 0.0f;
      }
    }
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
