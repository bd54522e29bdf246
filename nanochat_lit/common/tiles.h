// Products of up to 16 rows with blocks of 16 outputs in the tile registers of a processor that has them (AMX).
//
// A sum is the same bits for any number of rows, so whoever uses tiles for one row count has to use them for all. Reference:
// Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS, TDPBUSD, LDTILECFG.

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_TILES 0
#endif

namespace {

#if HAS_TILES

constexpr int TILE_BLOCKS = 4;  // of outputs that are summed together: registers 0 to 3; 4 is the inputs', 5 and 6 the weights'

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Linux lets a process use the registers once it has asked for them.
inline bool may_use_tiles() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool is_granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return is_granted;
}

// The next products have so many rows; `_tile_release` ends them.
inline void shape_tiles(int rows) {
  TileShapes shapes;
  for (int i = 0; i < 7; i++) shapes.rows[i] = uint8_t(i < TILE_BLOCKS + 1 ? rows : 16);
  asm volatile("" ::"m"(shapes) : "memory");  // the intrinsic names only a part of what it reads
  _tile_loadconfig(&shapes);
}

// sums[b][r][output] = sum over words of x[r][word] * weights[b][word][output]; pairs of bfloat16, or quadruples of unsigned
// inputs and signed weights. Words are a multiple of 16; `shape_tiles` was told the rows. The registers are named by literals.
template <bool is_int8, int NB>
void multiply_tiles(const uint32_t* weights, int words, const uint32_t* x, uint32_t (&sums)[NB][16][LANES]) {
  constexpr int BYTES = LANES * 4;
  const int64_t next = int64_t(words) * LANES;
  _tile_zero(0);
  if constexpr (NB > 1) _tile_zero(1);
  if constexpr (NB > 2) _tile_zero(2);
  if constexpr (NB > 3) _tile_zero(3);
  for (int k = 0; k < words; k += 16, weights += 16 * LANES) {
    _tile_loadd(4, x + k, int64_t(words) * 4);
    _tile_loadd(5, weights, BYTES);
    if constexpr (is_int8) _tile_dpbusd(0, 4, 5);
    else _tile_dpbf16ps(0, 4, 5);
    if constexpr (NB > 1) {
      _tile_loadd(6, weights + next, BYTES);
      if constexpr (is_int8) _tile_dpbusd(1, 4, 6);
      else _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (NB > 2) {
      _tile_loadd(5, weights + 2 * next, BYTES);
      if constexpr (is_int8) _tile_dpbusd(2, 4, 5);
      else _tile_dpbf16ps(2, 4, 5);
    }
    if constexpr (NB > 3) {
      _tile_loadd(6, weights + 3 * next, BYTES);
      if constexpr (is_int8) _tile_dpbusd(3, 4, 6);
      else _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, sums[0], BYTES);
  if constexpr (NB > 1) _tile_stored(1, sums[1], BYTES);
  if constexpr (NB > 2) _tile_stored(2, sums[2], BYTES);
  if constexpr (NB > 3) _tile_stored(3, sums[3], BYTES);
}

#else

inline bool may_use_tiles() { return false; }

#endif

}  // namespace
