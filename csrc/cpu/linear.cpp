// SPDX-License-Identifier: Apache-2.0
// Linear layer: x [T, K], W [N, K] in packed panels of 48 outputs, or transposed -> y [T, N], with bias and
// an activation or a gated residual applied in registers.
//
// Work 2 T N K FLOPs. Floor: at T tokens a weight is used T times, so below about 25 tokens (16 FLOPs a cycle
// and byte of memory rate) reading the weights once, 4 N K bytes, takes longer than the arithmetic.
//
// A register tile holds kTileRows rows of x times one piece of kPieces vectors: with AVX-512 8 x 48 (24
// accumulators, 3 weight vectors, broadcasts from memory), with AVX2 6 x 16, of which 256 inputs are 16 KB in
// whole cache lines; 4 x 24 would touch 32 KB, all of an L1 cache. A thread works on a range of (row block,
// panel): few rows are split by panels, so that every weight is read by one thread only. All rows of a block
// pass over a range of inputs of a panel before the next range, whose lines the first tiles prefetch.
//
// With AVX2 a block's rows are first packed, [input][row] for each tile: broadcasts then read one stream, and
// not six that are a row apart. Of a transposed weight the rows of a range lie on as many memory pages, so a
// range of a panel is copied once for the rows of a block. Scratch of a thread: the packed rows, at most 132
// x inputs floats.
//
// Each output is a chain of FMAs over each range of at most kMostInputs inputs in ascending order; the sums
// of the ranges are added in order, then the bias, then the epilogue: its bits depend on its own row of x and
// on nothing else, neither the number of rows nor the threads. That is why the engine does not use BLAS here.
#include "ardiff/linear.h"

#include <atomic>

#include "ardiff/gate_residual.h"
#include "gelu_simd.h"
#include "scratch.h"
#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

#if defined(ARDIFF_ISA_avx512)
constexpr int kTileRows = 8, kPieces = 3;  // rows and vectors of a register tile
constexpr bool kPacksRows = false;         // 8 broadcasts beside 24 FMAs
#elif defined(ARDIFF_ISA_avx2)
constexpr int kTileRows = 6, kPieces = 2;
constexpr bool kPacksRows = true;
#else
constexpr int kTileRows = 4, kPieces = 3;
constexpr bool kPacksRows = false;
#endif
constexpr int kPieceOutputs = kPieces * Vec::width;
static_assert(kPanelOutputs % kPieceOutputs == 0);
constexpr std::int64_t kMostInputs = 256;  // of a range: its piece of a panel stays in the L1 cache
// Rows of a block: at least 128, in whole tiles. Their range of x stays in the L2 cache while pieces pass.
constexpr std::int64_t kBlockRows = (128 + kTileRows - 1) / kTileRows * kTileRows;
constexpr int kLine = 16;  // floats of a cache line
// Tiles that prefetch the next range of their piece, a line of each input.
constexpr int kAhead = (kPieceOutputs + kLine - 1) / kLine;

// Rows [first, end) of x, whose tiles lie one after the other where they are packed.
struct Block {
  std::int64_t first, end;
  const float* x;
};

// What a register tile works on: one piece of a panel and a range of inputs.
struct Piece {
  const float* weights;  // of the first input of the range, `stride` floats per input
  std::int64_t stride;
  std::int64_t output;      // its first output
  std::int64_t begin, end;  // inputs
  float* sums;              // [row of the block][kPanelOutputs]: what earlier ranges gave
  const float* ahead;       // prefetched while this one is worked on, `step` floats per input
  std::int64_t step;
};

// Elements of x of the tile of R rows from `row` on, in the range of a piece.
template <int R>
class TileRows {
 public:
  TileRows(const LinearParams& p, const Block& block, const Piece& piece, std::int64_t row) {
    if constexpr (kPacksRows) {
      const std::int64_t rows = block.end - block.first, count = piece.end - piece.begin;
      base_[0] = block.x + piece.begin * rows + (row - block.first) * count;
    } else {
#pragma GCC unroll 3
      for (int r = 0; r < (R + 2) / 3; ++r) base_[r] = block.x + (row + 3 * r) * p.inputs + piece.begin;
      stride_ = p.inputs;
    }
  }
  float at(int r, std::int64_t i) const {
    return kPacksRows ? base_[0][i * R + r] : base_[r / 3][(r % 3) * stride_ + i];
  }

 private:
  // Three rows per base pointer: x86 addresses base + {0, 1, 2} * stride.
  const float* base_[(R + 2) / 3];
  std::int64_t stride_ = 0;
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

template <int R, bool Prefetches>
ARDIFF_SIMD void tile(const LinearParams& p, const Block& block, const Piece& piece, std::int64_t row) {
  Vec acc[R][kPieces];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) acc[r][v] = set(0.0f);
  }
  const TileRows<R> x(p, block, piece, row);
  const std::int64_t count = piece.end - piece.begin;
  const float* weights = piece.weights;
  const float* ahead = piece.ahead + (row - block.first) / kTileRows * kLine;
  for (std::int64_t i = 0; i < count; ++i, weights += piece.stride) {
    if constexpr (Prefetches) __builtin_prefetch(ahead + i * piece.step, 0, 2);
    Vec w[kPieces];
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) w[v] = load(weights + v * Vec::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec own = set(x.at(r, i));
#pragma GCC unroll 3
      for (int v = 0; v < kPieces; ++v) acc[r][v] = fma(own, w[v], acc[r][v]);
    }
  }
  float* sums = piece.sums + (row - block.first) * kPanelOutputs;
  if (piece.begin > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kPieces; ++v) {
        acc[r][v] = load(sums + r * kPanelOutputs + v * Vec::width) + acc[r][v];
      }
    }
  }
  if (piece.end == p.inputs) return finish<R>(p, row, piece.output, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kPieces; ++v) store(sums + r * kPanelOutputs + v * Vec::width, acc[r][v]);
  }
}

template <int R>
void tile_of(int rows, const LinearParams& p, const Block& block, const Piece& piece, std::int64_t row) {
  if constexpr (R > 0) {
    if (rows < R) return tile_of<R - 1>(rows, p, block, piece, row);
    if (row - block.first < kAhead * kTileRows) return tile<R, true>(p, block, piece, row);
    tile<R, false>(p, block, piece, row);
  }
}

// Rows of x as `TileRows` finds them: of each range, of each tile, [input][row].
void pack_rows(const LinearParams& p, std::int64_t range, const Block& block, float* to) {
  for (std::int64_t begin = 0; begin < p.inputs; begin += range) {
    const std::int64_t count = begin + range < p.inputs ? range : p.inputs - begin;
    for (std::int64_t row = block.first; row < block.end; row += kTileRows) {
      const std::int64_t rows = block.end - row < kTileRows ? block.end - row : kTileRows;
      const float* from = p.x + row * p.inputs + begin;
      if (rows == kTileRows) {
        for (std::int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
          for (int r = 0; r < kTileRows; ++r) *to++ = from[r * p.inputs + i];
        }
      } else {
        for (std::int64_t i = 0; i < count; ++i) {
          for (std::int64_t r = 0; r < rows; ++r) *to++ = from[r * p.inputs + i];
        }
      }
    }
  }
}

// A range of a panel of a transposed weight, [piece][input][kPieceOutputs]; outputs from `valid` on are 0.
ARDIFF_SIMD void copy_range(const float* from, std::int64_t stride, std::int64_t count, std::int64_t valid,
                            float* to) {
  for (std::int64_t i = 0; i < count; ++i, from += stride) {
#pragma GCC unroll 6
    for (std::int64_t c = 0; c < kPanelOutputs; c += Vec::width) {
      const std::int64_t left = valid - c;
      const int n = left < 0 ? 0 : left < Vec::width ? static_cast<int>(left) : Vec::width;
      store(to + (c / kPieceOutputs * count + i) * kPieceOutputs + c % kPieceOutputs, load_n(from + c, n));
    }
  }
}

// One panel of outputs of the rows of a block.
void pass(const LinearParams& p, std::int64_t range, const Block& block, std::int64_t panel) {
  alignas(64) float sums[kBlockRows * kPanelOutputs];
  alignas(64) float copied[kMostInputs * kPanelOutputs];
  const std::int64_t valid = p.outputs - panel * kPanelOutputs;
  const bool copies =
      p.panel_stride == kPanelOutputs && (block.end - block.first > 2 * kTileRows || valid < kPanelOutputs);
  for (std::int64_t begin = 0; begin < p.inputs; begin += range) {
    Piece piece{};
    piece.begin = begin;
    piece.end = begin + range < p.inputs ? begin + range : p.inputs;
    piece.step = p.input_stride;
    const std::int64_t count = piece.end - begin;
    const float* weights = p.weights + panel * p.panel_stride + begin * p.input_stride;
    if (copies) copy_range(weights, p.input_stride, count, valid, copied);
    for (std::int64_t output = 0; output < kPanelOutputs && output < valid; output += kPieceOutputs) {
      piece.weights = copies ? copied + output * count : weights + output;
      piece.stride = copies ? kPieceOutputs : p.input_stride;
      piece.output = panel * kPanelOutputs + output;
      piece.sums = sums + output;
      piece.ahead = (piece.end < p.inputs ? weights + count * p.input_stride
                                          : p.weights + (panel + 1) * p.panel_stride) +
                    output;
      for (std::int64_t row = block.first; row < block.end; row += kTileRows) {
        const std::int64_t left = block.end - row;
        tile_of<kTileRows>(left < kTileRows ? static_cast<int>(left) : kTileRows, p, block, piece, row);
      }
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
  const std::int64_t packed = kPacksRows ? block_rows * p.inputs : 0;
  Scratch scratch(threads * packed * static_cast<std::int64_t>(sizeof(float)));
  float* const rows = scratch.take<float>(threads * packed);
  std::atomic<int> thread = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* const own = rows + thread++ * packed;
    Block block{-1, -1, p.x};
#pragma omp for schedule(static)
    for (std::int64_t item = 0; item < items; ++item) {
      const std::int64_t first = item / panels * block_rows;
      if (first != block.first) {
        block.first = first;
        block.end = first + block_rows < p.rows ? first + block_rows : p.rows;
        if constexpr (kPacksRows) {
          pack_rows(p, range, block, own);
          block.x = own;
        }
      }
      pass(p, range, block, item % panels);
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
