// Inference on a CPU, from token ids to logits, in one call: one token for each of several sequences, or several tokens of one.
//
// Written in the compiler's portable vectors; where the processor has instructions for pairs of bfloat16 or quadruples of 8-bit
// integers, or registers for whole tiles of them, those are used. Elsewhere weights in bfloat16 are widened on their way to
// float32 arithmetic. Every output is a sum in an order that depends neither on the number of rows nor on threads, so a sequence
// gets the same bits in any batch.
//
// Shapes: rows (one a token), C channels (n_embd), H heads, Hkv key/value heads, D head dim.

#include "tiles.h"
#include "vectors.h"

namespace {

// How a matrix is stored, with 1, 2, 4 or 8 numbers to a 32-bit word, and its inputs: in the same form, but for WIDENED, whose
// bfloat16 weights meet inputs in float32, and INT4, whose weights (0 to 15, for -8 to 7) meet inputs in 8 bits.
enum Kind : int32_t { FLOAT32, BFLOAT16, INT8, WIDENED, INT4 };

constexpr int BLOCK = 16;  // outputs whose weights lie side by side
constexpr int VECTORS = BLOCK / LANES;

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;  // elsewhere BFLOAT16 is computed as WIDENED
#else
constexpr bool HAS_PAIRS = false;
#endif
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr int ZERO = 128;  // what stands for 0 in 8-bit inputs: these instructions take unsigned ones
#else
constexpr int ZERO = 0;
#endif

// As many sums as fit the registers: blocks of outputs for some rows. Many rows read a weight less often in a tile that is
// higher than wide; few rows need more sums at a time than they have rows, as each waits for the one before it.
#if defined(__AVX512F__)
constexpr int BLOCKS = 4, ROWS = 6, FEW_BLOCKS = 3, FEW_ROWS = 8, MANY_BLOCKS = 3, MANY_ROWS = 8;
#else
constexpr int BLOCKS = 4, ROWS = 1, FEW_BLOCKS = 2, FEW_ROWS = 3, MANY_BLOCKS = 1, MANY_ROWS = 6;
#endif

// INT4: words of weights that share a scale, and the blocks and rows of a tile, which needs two sums for each of its outputs.
constexpr int GROUP_WORDS = 4;
#if defined(__AVX512F__)
constexpr int GROUP_BLOCKS = 4, GROUP_ROWS = 2, MANY_GROUP_BLOCKS = 2, MANY_GROUP_ROWS = 6;
#else
constexpr int GROUP_BLOCKS = 2, GROUP_ROWS = 1, MANY_GROUP_BLOCKS = 1, MANY_GROUP_ROWS = 2;
#endif

constexpr int QUERIES = 4;  // of a prompt that are computed together
constexpr float QK_SCALE = 1.2f, VALUE_GATE_SCALE = 3.0f;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float dot(const float* a, const float* b, int n) {  // n is a multiple of LANES
  Floats sum = {};
  for (int i = 0; i < n; i += LANES) sum = fused(load<Floats>(a + i), load<Floats>(b + i), sum);
  return total(sum);
}

void scaled_norm(const float* x, float* out, int n, float eps, float scale) {
  float factor = scale / std::sqrt(dot(x, x, n) / n + eps);
  for (int i = 0; i < n; i++) out[i] = x[i] * factor;
}

}  // namespace

extern "C" {

struct Matrix {
  const uint32_t* weights;  // (blocks of outputs, words, BLOCK)
  const void* scales;       // INT8: of each output, float32; INT4: (blocks of outputs, groups, BLOCK) in bfloat16
  const int32_t* sums;      // INT8: of each output's weights
  int32_t kind, outputs, inputs, words;
};

struct Layer {
  Matrix q, k, v, proj, fc, out;
  const float* gate;         // (Hkv, gate_channels), or null: no value embedding
  const void* value_table;   // (vocabulary, Hkv * D)
  void *keys, *values;       // (slots, Hkv, room_stride, D)
  int32_t room, room_stride; // a ring of so many positions
  int32_t window;            // tokens before itself that a token sees
  float resid, x0;
};

struct Model {
  const Layer* layers;
  Matrix head;
  const void* embeddings;  // (vocabulary, C)
  const void* bigram;      // (hashed pairs of tokens, C), or null: no such table
  void* previous;          // (slots, C): un-smeared embedding of each sequence's last token
  const float *cos, *sin;  // (positions, D / 2)
  const float* smear_gate;
  float smear_lambda, backout, eps;
  int32_t n_layer, n_embd, n_head, n_kv_head, head_dim, smear_channels, gate_channels, vocab_size;
  int32_t is_bfloat16;     // tables and `previous`
  int32_t is_bfloat16_cache;
};

// Where a prompt is read into, all in the dtype of the tables.
struct Reading {
  void *keys, *values;  // (layers, room, Hkv, D)
  const void* before;   // (C): un-smeared embedding of the token before, or null: there is none
  void* after;          // (C): the last token's, to be written
  int32_t room;
};

}  // extern "C"

namespace {

Kind kind_of(const Matrix& m) { return m.kind == BFLOAT16 && !HAS_PAIRS ? WIDENED : Kind(m.kind); }

// Inputs to a word of weights, in words.
constexpr int per_word(Kind kind) { return kind == WIDENED || kind == INT4 ? 2 : 1; }
int value_words(const Matrix& m) { return m.words * per_word(kind_of(m)); }
// Of a row; INT4's ends with -8 times the sum of each group of inputs.
int input_words(const Matrix& m) { return value_words(m) + (kind_of(m) == INT4 ? m.words / GROUP_WORDS : 0); }

template <Kind kind> struct Sum {
  Floats v = {};
  void add(Words w, uint32_t x) {
#if defined(__AVX512BF16__)
    if constexpr (kind == BFLOAT16) v = (Floats)_mm512_dpbf16_ps((__m512)v, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(x)));
    else
#endif
      v = fused((Floats)w, bits<float>(x), v);
  }
};

template <> struct Sum<INT8> {  // signed weights; inputs around ZERO
  Ints v = {};
  void add(Words w, uint32_t x) {
#if defined(__AVX512VNNI__)
    v = (Ints)_mm512_dpbusd_epi32((__m512i)v, _mm512_set1_epi32(int(x)), (__m512i)w);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    v = (Ints)_mm256_dpbusd_avx_epi32((__m256i)v, _mm256_set1_epi32(int(x)), (__m256i)w);
#elif defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
    // unsigned times signed: the sign moves to the weight; two products of up to 127 * 127 fit 16 bits
    __m256i all = _mm256_set1_epi32(int(x));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(all), _mm256_sign_epi8((__m256i)w, all));
    v += (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    v = (Ints)vdotq_s32((int32x4_t)v, (int8x16_t)w, vreinterpretq_s8_u32(vdupq_n_u32(x)));
#else
    for (int byte = 0; byte < 4; byte++) v += ((Ints)(w << (24 - 8 * byte)) >> 24) * (int32_t(x << (24 - 8 * byte)) >> 24);
#endif
  }
};

// The sum of a group of weights (0 to 15) times 8-bit inputs.
struct GroupSum {
  Ints v = {};
  void add(Words w, uint32_t x) {
#if defined(__AVX512VNNI__)
    v = (Ints)_mm512_dpbusd_epi32((__m512i)v, (__m512i)w, _mm512_set1_epi32(int(x)));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    v = (Ints)_mm256_dpbusd_avx_epi32((__m256i)v, (__m256i)w, _mm256_set1_epi32(int(x)));
#elif defined(__AVX512BW__)
    v = (Ints)_mm512_add_epi16((__m512i)v, _mm512_maddubs_epi16((__m512i)w, _mm512_set1_epi32(int(x))));
#elif defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
    v = (Ints)_mm256_add_epi16((__m256i)v, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(int(x))));
#elif defined(__ARM_FEATURE_DOTPROD)
    v = (Ints)vdotq_s32((int32x4_t)v, (int8x16_t)w, vreinterpretq_s8_u32(vdupq_n_u32(x)));
#else
    for (int byte = 0; byte < 4; byte++) v += ((Ints)(w << (24 - 8 * byte)) >> 24) * (int32_t(x << (24 - 8 * byte)) >> 24);
#endif
  }
  Ints total() const {  // 16 pairs of products of up to 15 * 127 fit 16 bits
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
    return v;
#elif defined(__AVX512BW__)
    return (Ints)_mm512_madd_epi16((__m512i)v, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
    return (Ints)_mm256_madd_epi16((__m256i)v, _mm256_set1_epi16(1));
#else
    return v;
#endif
  }
};

// As `tile`, of weights in groups: the exact sum of a group is scaled and added to those of the groups before it.
template <int NB, int NR>
void tile_of_groups(const Matrix& m, int block, const uint32_t* x, Sum<INT4> (&out)[NB * VECTORS][NR]) {
  constexpr int NV = NB * VECTORS;
  int groups = m.words / GROUP_WORDS, stride = input_words(m), after = value_words(m);
  const uint16_t* scales = static_cast<const uint16_t*>(m.scales);
  Floats sums[NV][NR] = {};
  for (int group = 0; group < groups; group++) {
    GroupSum exact[NV][NR];
    for (int k = group * GROUP_WORDS; k < (group + 1) * GROUP_WORDS; k++) {
      Words low[NV], high[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) {
        Words w = load<Words>(m.weights + (int64_t(block + v / VECTORS) * m.words + k) * BLOCK + v % VECTORS * LANES);
        low[v] = w & 0x0f0f0f0fu, high[v] = w >> 4 & 0x0f0f0f0fu;
      }
#pragma GCC unroll 8
      for (int r = 0; r < NR; r++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) {
          exact[v][r].add(low[v], x[int64_t(r) * stride + 2 * k]);
          exact[v][r].add(high[v], x[int64_t(r) * stride + 2 * k + 1]);
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) {
      Floats scale = load_wide(scales + (int64_t(block + v / VECTORS) * groups + group) * BLOCK + v % VECTORS * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < NR; r++) {
        Ints sum = exact[v][r].total() + int32_t(x[int64_t(r) * stride + after + group]);
        sums[v][r] = fused(__builtin_convertvector(sum, Floats), scale, sums[v][r]);
      }
    }
  }
  for (int v = 0; v < NV; v++)
    for (int r = 0; r < NR; r++) out[v][r].v = sums[v][r];
}

// Sums of NR rows for NB blocks of outputs; both halves of a word go into the same sum, one after the other.
template <Kind kind, int NB, int NR>
void tile(const uint32_t* weights, int words, const uint32_t* x, Sum<kind> (&out)[NB * VECTORS][NR]) {
  constexpr int NV = NB * VECTORS, PARTS = per_word(kind);
  Sum<kind> sums[NV][NR];
  for (int k = 0; k < words; k++) {
    Words whole[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++)
      whole[v] = load<Words>(weights + (int64_t(v / VECTORS) * words + k) * BLOCK + v % VECTORS * LANES);
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) {
      Words w[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; v++) w[v] = PARTS == 1 ? whole[v] : part == 0 ? whole[v] << 16 : whole[v] & 0xffff0000u;
#pragma GCC unroll 8
      for (int r = 0; r < NR; r++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sums[v][r].add(w[v], x[(int64_t(r) * words + k) * PARTS + part]);
    }
  }
  for (int v = 0; v < NV; v++)
    for (int r = 0; r < NR; r++) out[v][r] = sums[v][r];
}

// A vector of a row's outputs as they are meant.
template <Kind kind> Floats finished(const Matrix& m, Sum<kind> sum, int output, float x_scale) {
  if constexpr (kind == INT8) {
    Ints exact = sum.v - ZERO * load<Ints>(m.sums + output);
    return __builtin_convertvector(exact, Floats) * load<Floats>(static_cast<const float*>(m.scales) + output) * x_scale;
  } else if constexpr (kind == INT4) {
    return sum.v * x_scale;
  } else {
    return sum.v;
  }
}

template <Kind kind, int NB, int NR, class Put>
void rows_of_blocks(const Matrix& m, const uint32_t* x, const float* x_scales, int row, int block, Put put) {
  Sum<kind> sums[NB * VECTORS][NR];
  const uint32_t* first = x + int64_t(row) * input_words(m);
  if constexpr (kind == INT4) tile_of_groups<NB, NR>(m, block, first, sums);
  else tile<kind, NB, NR>(m.weights + int64_t(block) * m.words * BLOCK, m.words, first, sums);
  for (int v = 0; v < NB * VECTORS; v++)
    for (int r = 0; r < NR; r++) {
      int output = block * BLOCK + v * LANES;
      if (output >= m.outputs) return;  // the last block may be filled up with zeros
      put(row + r, output, finished<kind>(m, sums[v][r], output, x_scales[row + r]));
    }
}

template <Kind kind, int NB, int NR, class Put>
void some_rows(const Matrix& m, const uint32_t* x, const float* x_scales, int row, int count, int block, Put put) {
  if (count == NR) rows_of_blocks<kind, NB, NR>(m, x, x_scales, row, block, put);
  else if constexpr (NR > 1) some_rows<kind, NB, NR - 1>(m, x, x_scales, row, count, block, put);
}

// All rows in as few passes as possible, of nearly the same height.
template <Kind kind, int NB, int NR, class Put>
void all_rows(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, int block, Put put) {
  int passes = (rows + NR - 1) / NR;
  for (int row = 0; passes; passes--) {
    int count = (rows - row) / passes;
    some_rows<kind, NB, NR>(m, x, x_scales, row, count, block, put);
    row += count;
  }
}

template <Kind kind, int NB, int NR, class Put>
void my_outputs(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
  int num_blocks = (m.outputs + BLOCK - 1) / BLOCK;
  int num_groups = (num_blocks + NB - 1) / NB;
  int block = team.begin(num_groups) * NB, end = std::min(team.end(num_groups) * NB, num_blocks);
  for (; block + NB <= end; block += NB) all_rows<kind, NB, NR>(m, x, x_scales, rows, block, put);
  for (; block < end; block++) all_rows<kind, 1, NR>(m, x, x_scales, rows, block, put);
}

bool is_using_tiles = true;  // where there are any

#if HAS_TILES

template <Kind kind, int NB, class Put>
void tiles_of_blocks(const Matrix& m, const uint32_t* x, const float* x_scales, int row, int count, int block, Put put) {
  alignas(64) uint32_t sums[NB][16][LANES];
  const uint32_t* weights = m.weights + int64_t(block) * m.words * LANES;
  multiply_tiles<kind == INT8, NB>(weights, m.words, x + int64_t(row) * m.words, sums);
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < count; r++) {
      int output = (block + b) * LANES;
      put(row + r, output, finished<kind>(m, load<Sum<kind>>(sums[b][r]), output, x_scales[row + r]));
    }
}

template <Kind kind, class Put>
void my_tiles(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
  int num_blocks = (m.outputs + LANES - 1) / LANES;
  int num_groups = (num_blocks + TILE_BLOCKS - 1) / TILE_BLOCKS;
  int end = std::min(team.end(num_groups) * TILE_BLOCKS, num_blocks), shaped = 0;
  for (int block = team.begin(num_groups) * TILE_BLOCKS; block < end; block += TILE_BLOCKS)
    for (int row = 0; row < rows; row += 16) {
      int count = std::min(16, rows - row);
      if (count != shaped) shape_tiles(shaped = count);
      if (block + TILE_BLOCKS <= end) tiles_of_blocks<kind, TILE_BLOCKS>(m, x, x_scales, row, count, block, put);
      else
        for (int one = block; one < end; one++) tiles_of_blocks<kind, 1>(m, x, x_scales, row, count, one, put);
    }
  _tile_release();
}

#endif

template <Kind kind, class Put>
void tiled(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
#if HAS_TILES
  if constexpr (kind == BFLOAT16 || kind == INT8)
    if (m.words % 16 == 0 && is_using_tiles && may_use_tiles()) return my_tiles<kind>(m, x, x_scales, rows, team, put);
#endif
  if constexpr (kind == INT4) {
    if (rows <= GROUP_ROWS) my_outputs<kind, GROUP_BLOCKS, GROUP_ROWS>(m, x, x_scales, rows, team, put);
    else my_outputs<kind, MANY_GROUP_BLOCKS, MANY_GROUP_ROWS>(m, x, x_scales, rows, team, put);
  } else if (rows <= ROWS) my_outputs<kind, BLOCKS, ROWS>(m, x, x_scales, rows, team, put);
  else if (rows <= FEW_ROWS) my_outputs<kind, FEW_BLOCKS, FEW_ROWS>(m, x, x_scales, rows, team, put);
  else my_outputs<kind, MANY_BLOCKS, MANY_ROWS>(m, x, x_scales, rows, team, put);
}

// This thread's share of the outputs of matrix times rows; put(row, first output, a vector of values) takes them.
template <class Put>
void multiply(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
  Kind kind = kind_of(m);
  if (kind == FLOAT32) tiled<FLOAT32>(m, x, x_scales, rows, team, put);
  else if (kind == WIDENED) tiled<WIDENED>(m, x, x_scales, rows, team, put);
  else if (kind == INT8) tiled<INT8>(m, x, x_scales, rows, team, put);
  else if (kind == INT4) tiled<INT4>(m, x, x_scales, rows, team, put);
  else if constexpr (HAS_PAIRS) tiled<BFLOAT16>(m, x, x_scales, rows, team, put);
}

// A row in the form that a matrix multiplies; returns its scale.
float prepare(const Matrix& m, const float* x, uint32_t* out) {
  Kind kind = kind_of(m);
  if (kind == FLOAT32 || kind == WIDENED) {
    std::memcpy(out, x, sizeof(float) * m.inputs);
    for (int i = m.inputs; i < input_words(m); i++) out[i] = 0;
  } else if (kind == BFLOAT16) {
    uint16_t* half = reinterpret_cast<uint16_t*>(out);
    for (int i = 0; i < m.inputs; i++) half[i] = to_bfloat16(x[i]);
    for (int i = m.inputs; i < 2 * m.words; i++) half[i] = 0;
  } else {
    float largest = 1.17549435e-38f;
    for (int i = 0; i < m.inputs; i++) largest = std::max(largest, std::fabs(x[i]));
    float scale = largest / 127;
    int zero = kind == INT8 ? ZERO : 0;
    uint8_t* byte = reinterpret_cast<uint8_t*>(out);
    for (int i = 0; i < m.inputs; i++) byte[i] = uint8_t(int(std::nearbyint(x[i] / scale)) + zero);
    for (int i = m.inputs; i < 4 * value_words(m); i++) byte[i] = uint8_t(zero);
    if (kind == INT4) {
      constexpr int GROUP = 8 * GROUP_WORDS;
      for (int group = 0; group < m.words / GROUP_WORDS; group++) {
        int sum = 0;
        for (int i = group * GROUP; i < (group + 1) * GROUP; i++) sum += int8_t(byte[i]);
        out[value_words(m) + group] = uint32_t(-8 * sum);
      }
    }
    return scale;
  }
  return 1.0f;
}

void put_some(float* to, Floats values, int left) { std::memcpy(to, &values, sizeof(float) * std::min(left, LANES)); }

void table_row(const Model& model, const void* table, int64_t row, int width, float* out) {
  if (model.is_bfloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(table) + row * width;
    for (int i = 0; i < width; i++) out[i] = from_bfloat16(from[i]);
  } else {
    std::memcpy(out, static_cast<const float*>(table) + row * width, sizeof(float) * width);
  }
}

// Neighbouring queries of one head, which meet the same keys; `stride` numbers from one key, or query, to the next.
template <class Cached> struct Queries {
  const float* first;
  float* out;
  int stride;
  const Cached *keys, *values;  // from position 0
  int key_stride;
  int position, window;  // of the first query; tokens before itself that each sees
  float* weights;        // room for as many weights for each query as it sees keys, and 32 more
  int room;
};

// N vectors of Q weighted sums of values, which are read in their order.
template <int Q, int N, class Cached>
void weigh(const Queries<Cached>& a, int begin, int end, const float* factors, int at) {
  Floats sums[Q][N] = {};
  for (int j = begin; j < end; j++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      Floats value = load_wide(a.values + int64_t(j) * a.key_stride + at + n * LANES);
#pragma GCC unroll 8
      for (int q = 0; q < Q; q++) sums[q][n] = fused(value, a.weights[int64_t(q) * a.room + j - begin], sums[q][n]);
    }
  for (int q = 0; q < Q; q++)
    for (int n = 0; n < N; n++) store(a.out + int64_t(q) * a.stride + at + n * LANES, sums[q][n] * factors[q]);
}

// Keys are taken a vector at a time by their position, so a query gets the same bits beside any others.
template <int Q, class Cached> void mix(const Queries<Cached>& a, int D) {
  int begin = std::max(0, a.position - a.window) / LANES * LANES, end = a.position + Q;
  float scale = 1.0f / std::sqrt(float(D)), factors[Q];
  Floats most[Q];
  for (int q = 0; q < Q; q++) most[q] = Floats{} - INFINITY;
  for (int block = begin; block < end; block += LANES) {
    Floats sums[Q][LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) {
      const Cached* key = a.keys + int64_t(std::min(block + j, end - 1)) * a.key_stride;  // those after the last do not count
      Floats sum[Q] = {};
      for (int i = 0; i < D; i += LANES) {
        Floats some = load_wide(key + i);
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++) sum[q] = fused(load<Floats>(a.first + int64_t(q) * a.stride + i), some, sum[q]);
      }
      for (int q = 0; q < Q; q++) sums[q][j] = sum[q];
    }
    for (int q = 0; q < Q; q++) {
      float* weights = a.weights + int64_t(q) * a.room + block - begin;
      store(weights, totals(sums[q]) * scale);
      int last = a.position + q;
      for (int j = block; j < std::min(last - a.window, block + LANES); j++) weights[j - block] = -INFINITY;
      for (int j = std::max(block, last + 1); j < block + LANES; j++) weights[j - block] = -INFINITY;
      Floats weight = load<Floats>(weights);
      most[q] = weight > most[q] ? weight : most[q];
    }
  }
  for (int q = 0; q < Q; q++) {
    float lane[LANES], *weights = a.weights + int64_t(q) * a.room;
    store(lane, most[q]);
    float largest = *std::max_element(lane, lane + LANES);
    Floats sums = {};
    for (int j = 0; j < end - begin; j += LANES) {
      Floats weight = load<Floats>(weights + j);
      Floats e = exponential(weight - largest);
      e = weight == -INFINITY ? Floats{} : e;
      store(weights + j, e);
      sums += e;
    }
    factors[q] = 1.0f / total(sums);
  }
  constexpr int WIDE = Q == 1 ? 8 : LANES == 8 ? 2 : 4;
  int i = 0;
  for (; i + WIDE * LANES <= D; i += WIDE * LANES) weigh<Q, WIDE>(a, begin, end, factors, i);
  for (; i < D; i += LANES) weigh<Q, 1>(a, begin, end, factors, i);
}

// Room for the intermediate states of all rows.
struct Step {
  const Model& model;
  const int32_t *tokens, *pairs, *positions;
  int rows;
  const Reading* reading;  // null: every row is a sequence of its own
  int max_room;            // positions of the longest sequence
  float *x = {}, *first = {}, *middle = {}, *normed = {}, *q = {}, *k = {}, *v = {}, *mixed = {}, *hidden = {}, *gates = {},
        *scales = {}, *scores = {};
  uint32_t *inputs = {}, *hidden_inputs = {};

  // The same walk counts the floats and hands them out.
  int64_t place(float* base, int threads) {
    int64_t used = 0;
    auto take = [&](auto*& pointer, int64_t count) {
      using Pointer = std::remove_reference_t<decltype(pointer)>;
      pointer = base ? reinterpret_cast<Pointer>(base + used) : nullptr;
      used += (count + LANES - 1) / LANES * LANES;
    };
    int64_t C = model.n_embd, kv = int64_t(model.n_kv_head) * model.head_dim, n = rows;
    take(x, n * C), take(first, n * C), take(middle, n * C), take(normed, n * C), take(q, n * C), take(mixed, n * C);
    take(k, n * kv), take(v, n * kv), take(hidden, n * 4 * C), take(gates, n * model.n_kv_head), take(scales, n);
    take(inputs, n * C), take(hidden_inputs, n * 4 * C);
    take(scores, threads * room_floats());
    return used;
  }

  // What a thread needs for itself.
  int64_t room_floats() const { return int64_t(QUERIES) * (max_room + 4 * LANES) + model.head_dim; }

  void embed(int row) {
    float* embedding = normed + int64_t(row) * model.n_embd;
    table_row(model, model.embeddings, tokens[row], model.n_embd, embedding);
    if (model.bigram) {
      float* pair = first + int64_t(row) * model.n_embd;  // not in use yet
      table_row(model, model.bigram, pairs[row], model.n_embd, pair);
      for (int i = 0; i < model.n_embd; i++) embedding[i] += pair[i];
    }
    scaled_norm(embedding, embedding, model.n_embd, model.eps, 1.0f);
  }

  // Add a gated share of the token before, as the cache holds it, and put this one into the cache.
  void smear(int row) {
    int C = model.n_embd;
    const float* embedding = normed + int64_t(row) * C;
    float *out = x + int64_t(row) * C, opening = 0;
    for (int i = 0; i < model.smear_channels; i++) opening += embedding[i] * model.smear_gate[i];
    float gate = model.smear_lambda * sigmoid(opening);
    if (!reading) {
      table_row(model, model.previous, row, C, out);
      put_embedding(embedding, model.previous, row);
    } else if (row) {
      for (int i = 0; i < C; i++) out[i] = as_cached(embedding[i - C]);
    } else if (reading->before) {
      table_row(model, reading->before, 0, C, out);
    } else {
      std::memset(out, 0, sizeof(float) * C);
    }
    if (reading && row == rows - 1) put_embedding(embedding, reading->after, 0);
    for (int i = 0; i < C; i++) out[i] = embedding[i] + gate * out[i];
    std::memcpy(first + int64_t(row) * C, out, sizeof(float) * C);
  }

  float as_cached(float value) const { return model.is_bfloat16 ? from_bfloat16(to_bfloat16(value)) : value; }

  void put_embedding(const float* embedding, void* to, int64_t row) {
    int C = model.n_embd;
    if (!model.is_bfloat16) std::memcpy(static_cast<float*>(to) + row * C, embedding, sizeof(float) * C);
    else
      for (int i = 0; i < C; i++) static_cast<uint16_t*>(to)[row * C + i] = to_bfloat16(embedding[i]);
  }

  void norm_and_prepare(int row, const float* state, const Matrix& m) {
    float* out = normed + int64_t(row) * model.n_embd;
    scaled_norm(state, out, model.n_embd, model.eps, 1.0f);
    scales[row] = prepare(m, out, inputs + int64_t(row) * input_words(m));
  }

  void open_gates(const Layer& layer, int row) {
    const float* state = normed + int64_t(row) * model.n_embd;
    for (int head = 0; head < model.n_kv_head; head++) {
      float sum = 0;
      for (int i = 0; i < model.gate_channels; i++) sum += state[i] * layer.gate[head * model.gate_channels + i];
      gates[row * model.n_kv_head + head] = VALUE_GATE_SCALE * sigmoid(sum);
    }
  }

  void rotate(float* vector, int position, float scale) {
    int half = model.head_dim / 2;
    const float *cos = model.cos + int64_t(position) * half, *sin = model.sin + int64_t(position) * half;
    for (int i = 0; i < half; i++) {
      float a = vector[i], b = vector[i + half];
      vector[i] = a * cos[i] + b * sin[i];
      vector[i + half] = b * cos[i] - a * sin[i];
    }
    scaled_norm(vector, vector, model.head_dim, model.eps, scale);
  }

  // A key/value head of a row: its new key and value are made ready and stored.
  template <class Cached> void keep(const Layer& layer, int number, int row, int head, float* room) {
    int D = model.head_dim, heads = model.n_kv_head;
    float* key = k + (int64_t(row) * heads + head) * D;
    float* value = v + (int64_t(row) * heads + head) * D;
    if (layer.gate) {
      float* embedding = room;
      const char* table = static_cast<const char*>(layer.value_table);
      int64_t bytes = int64_t(D) * (model.is_bfloat16 ? 2 : 4);
      table_row(model, table + (int64_t(tokens[row]) * heads + head) * bytes, 0, D, embedding);
      float gate = gates[row * heads + head];
      for (int i = 0; i < D; i++) value[i] += gate * embedding[i];
    }
    rotate(key, positions[row], QK_SCALE);
    Cached *to_key = keys<Cached>(layer, number, row, head), *to_value = values<Cached>(layer, number, row, head);
    int64_t at = int64_t(reading ? positions[row] : positions[row] % layer.room) * stride();
    for (int i = 0; i < D; i++) narrowed(key[i], to_key[at + i]), narrowed(value[i], to_value[at + i]);
  }

  // The query heads that share a key/value head attend, of Q neighbouring rows of a prompt or of one of slots.
  template <int Q, class Cached> void attend(const Layer& layer, int number, int row, int head, float* room) {
    int C = model.n_embd, D = model.head_dim, group = model.n_head / model.n_kv_head, position = positions[row];
    int last = reading ? position : std::min(position, layer.room - 1);  // a ring that is full is seen whole
    for (int member = 0; member < group; member++) {
      int64_t at = int64_t(row) * C + (head * group + member) * D;
      for (int i = 0; i < Q; i++) rotate(q + at + int64_t(i) * C, positions[row + i], QK_SCALE);
      mix<Q>(Queries<Cached>{q + at, mixed + at, C, keys<Cached>(layer, number, row, head),
                             values<Cached>(layer, number, row, head), stride(), last,
                             reading ? layer.window : last, room, max_room + 4 * LANES},
             D);
    }
  }

  int stride() const { return reading ? model.n_kv_head * model.head_dim : model.head_dim; }

  // Where a head's keys begin, in the cache of slots or in that of the prompt.
  int64_t cached_at(const Layer& layer, int number, int row, int head) const {
    int64_t D = model.head_dim, heads = model.n_kv_head;
    return reading ? (int64_t(number) * reading->room * heads + head) * D : (row * heads + head) * layer.room_stride * D;
  }
  template <class Cached> Cached* keys(const Layer& layer, int number, int row, int head) const {
    return static_cast<Cached*>(reading ? reading->keys : layer.keys) + cached_at(layer, number, row, head);
  }
  template <class Cached> Cached* values(const Layer& layer, int number, int row, int head) const {
    return static_cast<Cached*>(reading ? reading->values : layer.values) + cached_at(layer, number, row, head);
  }

  template <class Cached> void attention(const Layer& layer, int number, const Team& team, float* room) {
    int heads = model.n_kv_head, items = rows * heads;
    for (int item = team.thread; item < items; item += team.size) keep<Cached>(layer, number, item / heads, item % heads, room);
    if (reading) team.wait();  // a token sees those before it
    int together = reading ? rows / QUERIES : 0;
    for (int item = team.thread; item < together * heads; item += team.size)
      attend<QUERIES, Cached>(layer, number, item / heads * QUERIES, item % heads, room);
    for (int item = together * QUERIES * heads + team.thread; item < items; item += team.size)
      attend<1, Cached>(layer, number, item / heads, item % heads, room);
  }

  void run(const Team& team, float* logits) {
    int C = model.n_embd, kv = model.n_kv_head * model.head_dim, first_row = team.begin(rows), end_row = team.end(rows);
    float* room = scores + team.thread * room_floats();
    auto into = [&](float* to, int width) {
      return [=](int row, int output, Floats values) { put_some(to + int64_t(row) * width + output, values, width - output); };
    };
    auto onto_x = [=, this](int row, int output, Floats values) {
      float* to = x + int64_t(row) * C + output;
      store(to, load<Floats>(to) + values);
    };
    for (int row = first_row; row < end_row; row++) embed(row);
    team.wait();
    for (int row = first_row; row < end_row; row++) smear(row);
    if (reading) team.wait();
    for (int number = 0; number < model.n_layer; number++) {
      const Layer& layer = model.layers[number];
      for (int row = first_row; row < end_row; row++) {
        float *state = x + int64_t(row) * C, *start = first + int64_t(row) * C;
        for (int i = 0; i < C; i++) state[i] = layer.resid * state[i] + layer.x0 * start[i];
        norm_and_prepare(row, state, layer.q);
        if (layer.gate) open_gates(layer, row);
      }
      team.wait();
      multiply(layer.q, inputs, scales, rows, team, into(q, C));
      multiply(layer.k, inputs, scales, rows, team, into(k, kv));
      multiply(layer.v, inputs, scales, rows, team, into(v, kv));
      team.wait();
      if (reading ? model.is_bfloat16 : model.is_bfloat16_cache) attention<uint16_t>(layer, number, team, room);
      else attention<float>(layer, number, team, room);
      team.wait();
      for (int row = first_row; row < end_row; row++)
        scales[row] = prepare(layer.proj, mixed + int64_t(row) * C, inputs + int64_t(row) * input_words(layer.proj));
      team.wait();
      multiply(layer.proj, inputs, scales, rows, team, onto_x);
      team.wait();
      for (int row = first_row; row < end_row; row++) norm_and_prepare(row, x + int64_t(row) * C, layer.fc);
      team.wait();
      multiply(layer.fc, inputs, scales, rows, team, [=, this](int row, int output, Floats values) {
        values = values > 0.0f ? values * values : Floats{};
        store(hidden + int64_t(row) * 4 * C + output, values);
      });
      team.wait();
      for (int row = first_row; row < end_row; row++)
        scales[row] = prepare(layer.out, hidden + int64_t(row) * 4 * C, hidden_inputs + int64_t(row) * input_words(layer.out));
      team.wait();
      multiply(layer.out, hidden_inputs, scales, rows, team, onto_x);
      team.wait();
      if (number == model.n_layer / 2)
        for (int row = first_row; row < end_row; row++)
          std::memcpy(middle + int64_t(row) * C, x + int64_t(row) * C, sizeof(float) * C);
    }
    for (int row = first_row; row < end_row; row++) {
      float *state = x + int64_t(row) * C, *half = middle + int64_t(row) * C;
      for (int i = 0; i < C; i++) state[i] -= model.backout * half[i];
      norm_and_prepare(row, state, model.head);
    }
    team.wait();
    int V = model.vocab_size, skipped = reading ? rows - 1 : 0;  // of a prompt only what follows it is asked for
    multiply(model.head, inputs + int64_t(skipped) * input_words(model.head), scales + skipped, rows - skipped, team,
             [=](int row, int output, Floats z) {
               if (output >= V) return;  // the table has rows beyond the vocabulary
               Floats capped = SOFTCAP * (1.0f - 2.0f / (exponential(z * (2.0f / SOFTCAP)) + 1.0f));
               put_some(logits + int64_t(row) * V + output, capped, V - output);
             });
  }
};

}  // namespace

extern "C" {

int64_t workspace_floats(const Model* model, int32_t rows, int32_t threads, int32_t max_room) {
  Step step{*model, nullptr, nullptr, nullptr, rows, nullptr, max_room};
  return step.place(nullptr, threads);
}

// Extend the sequences in slots 0 to rows - 1 by a token each, or (reading is given) one sequence by rows tokens, which takes
// max_room positions then. pairs are the rows of the table of pairs, if there is one; logits is (rows, vocab_size), or
// (vocab_size) after the last token.
void run_step(const Model* model, const Reading* reading, const int32_t* tokens, const int32_t* pairs,
              const int32_t* positions, int32_t rows, int32_t threads, int32_t max_room, float* workspace, float* logits) {
  Step step{*model, tokens, pairs, positions, rows, reading, max_room};
  step.place(workspace, threads);
  with_team(threads, [&](const Team& team) {
    Step mine = step;
    mine.run(team, logits);
  });
}

// Of Matrix, Layer, Model and Reading, in bytes, so that Python's can be compared.
void struct_sizes(int64_t* sizes) {
  for (size_t size : {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Reading)}) *sizes++ = int64_t(size);
}

// Whether tiles are used from now on, if this processor has any; returns whether they are.
int32_t use_tiles(int32_t is_wanted) {
  is_using_tiles = is_wanted;
  return is_wanted && HAS_TILES && may_use_tiles();
}

// rows of inputs -> rows of outputs, both in bfloat16 or both in float32.
void linear(const Matrix* m, const void* x, void* y, int32_t rows, int32_t is_bfloat16, int32_t threads) {
  Kind kind = kind_of(*m);
  bool is_ready = is_bfloat16 ? kind == BFLOAT16 && m->inputs == m->words * 2
                              : (kind == FLOAT32 || kind == WIDENED) && m->inputs == input_words(*m);
  std::vector<uint32_t> prepared(is_ready ? 0 : int64_t(rows) * input_words(*m));
  std::vector<float> scales(rows);
  const uint32_t* inputs = is_ready ? static_cast<const uint32_t*>(x) : prepared.data();
  with_team(threads, [&](const Team& team) {
    if (!is_ready) {
      std::vector<float> wide(m->inputs);
      for (int row = team.begin(rows); row < team.end(rows); row++) {
        const float* from = static_cast<const float*>(x) + int64_t(row) * m->inputs;
        if (is_bfloat16) {
          const uint16_t* half = static_cast<const uint16_t*>(x) + int64_t(row) * m->inputs;
          for (int i = 0; i < m->inputs; i++) wide[i] = from_bfloat16(half[i]);
          from = wide.data();
        }
        scales[row] = prepare(*m, from, prepared.data() + int64_t(row) * input_words(*m));
      }
      team.wait();
    }
    multiply(*m, inputs, scales.data(), rows, team, [&](int row, int output, Floats values) {
      int count = std::min(m->outputs - output, LANES);
      int64_t at = int64_t(row) * m->outputs + output;
      if (is_bfloat16) {
        float lane[LANES];
        store(lane, values);
        for (int i = 0; i < count; i++) static_cast<uint16_t*>(y)[at + i] = to_bfloat16(lane[i]);
      } else {
        std::memcpy(static_cast<float*>(y) + at, &values, sizeof(float) * count);
      }
    });
  });
}

}  // extern "C"
