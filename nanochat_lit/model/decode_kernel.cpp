// Decoding on a CPU: one token for each of several sequences, from token ids to logits, in one call.
//
// Written in the compiler's portable vectors of 16 lanes; where the processor has instructions for pairs of bfloat16 or
// quadruples of 8-bit integers, those are used. Every output is one sum over the inputs in their order, whatever the number of
// rows and threads, so a sequence gets the same bits in any company.
//
// Shapes: rows (one a sequence), C channels (n_embd), H heads, Hkv key/value heads, D head dim.

#include "vectors.h"

namespace {

// How a matrix and its inputs are stored: 1, 2 or 4 numbers to a 32-bit word.
enum Kind : int32_t { FLOAT32, BFLOAT16, INT8 };

// As many sums as fit the registers: BLOCKS of 16 outputs for ROWS rows.
#if defined(__AVX512F__)
constexpr int BLOCKS = 4, ROWS = 6;
#else
constexpr int BLOCKS = 2, ROWS = 2;
#endif

constexpr float QK_SCALE = 1.2f, VALUE_GATE_SCALE = 3.0f;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float dot(const float* a, const float* b, int n) {  // n is a multiple of LANES
  Floats sum = {};
  for (int i = 0; i < n; i += LANES) sum += load<Floats>(a + i) * load<Floats>(b + i);
  return total(sum);
}

void scaled_norm(const float* x, float* out, int n, float eps, float scale) {
  float factor = scale / std::sqrt(dot(x, x, n) / n + eps);
  for (int i = 0; i < n; i++) out[i] = x[i] * factor;
}

}  // namespace

extern "C" {

struct Matrix {
  const uint32_t* weights;  // (blocks of 16 outputs, words, 16)
  const float* scales;      // INT8: of each output
  const int32_t* sums;      // INT8: of each output's weights
  int32_t kind, outputs, inputs, words;
};

struct Layer {
  Matrix q, k, v, proj, fc, out;
  const float* gate;         // (Hkv, gate_channels), or null: no value embedding
  const void* value_table;   // (vocabulary, Hkv * D)
  float *keys, *values;      // (slots, Hkv, room_stride, D)
  int32_t room, room_stride; // a ring of so many positions
  float resid, x0;
};

struct Model {
  const Layer* layers;
  Matrix head;
  const void* embeddings;  // (vocabulary, C)
  void* previous;          // (slots, C): un-smeared embedding of each sequence's last token
  const float *cos, *sin;  // (positions, D / 2)
  const float* smear_gate;
  float smear_lambda, backout, eps;
  int32_t n_layer, n_embd, n_head, n_kv_head, head_dim, smear_channels, gate_channels, vocab_size;
  int32_t is_bfloat16;     // tables and `previous`
};

}  // extern "C"

namespace {

template <Kind kind> struct Sum {
  Floats v = {};
  void add(Words w, uint32_t x) {
    if constexpr (kind == FLOAT32) {
      v += (Floats)w * bits<float>(x);
    } else {
#if defined(__AVX512BF16__)
      v = (Floats)_mm512_dpbf16_ps((__m512)v, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(x)));
#else
      v += (Floats)(w << 16) * bits<float>(x << 16);
      v += (Floats)(w & 0xffff0000u) * bits<float>(x & 0xffff0000u);
#endif
    }
  }
};

template <> struct Sum<INT8> {  // signed weights, unsigned inputs around 128
  Ints v = {};
  void add(Words w, uint32_t x) {
#if defined(__AVX512VNNI__)
    v = (Ints)_mm512_dpbusd_epi32((__m512i)v, _mm512_set1_epi32(int(x)), (__m512i)w);
#else
    for (int byte = 0; byte < 4; byte++) v += ((Ints)(w << (24 - 8 * byte)) >> 24) * int32_t((x >> (8 * byte)) & 255);
#endif
  }
};

template <Kind kind, int NB, int NR>
void tile(const uint32_t* weights, int words, const uint32_t* x, Sum<kind> (&out)[NB][NR]) {
  Sum<kind> sums[NB][NR];
  for (int k = 0; k < words; k++) {
    Words w[NB];
#pragma GCC unroll 8
    for (int b = 0; b < NB; b++) w[b] = load<Words>(weights + (int64_t(b) * words + k) * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < NR; r++)
#pragma GCC unroll 8
      for (int b = 0; b < NB; b++) sums[b][r].add(w[b], x[int64_t(r) * words + k]);
  }
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < NR; r++) out[b][r] = sums[b][r];
}

template <Kind kind, int NB, int NR, class Put>
void rows_of_blocks(const Matrix& m, const uint32_t* x, const float* x_scales, int row, int block, Put put) {
  Sum<kind> sums[NB][NR];
  tile<kind, NB, NR>(m.weights + int64_t(block) * m.words * LANES, m.words, x + int64_t(row) * m.words, sums);
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < NR; r++) {
      int output = (block + b) * LANES;
      if constexpr (kind == INT8) {
        Ints exact = sums[b][r].v - 128 * load<Ints>(m.sums + output);
        put(row + r, output, __builtin_convertvector(exact, Floats) * load<Floats>(m.scales + output) * x_scales[row + r]);
      } else {
        put(row + r, output, sums[b][r].v);
      }
    }
}

template <Kind kind, int NB, class Put>
void all_rows(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, int block, Put put) {
  int row = 0;
  for (; row + ROWS <= rows; row += ROWS) rows_of_blocks<kind, NB, ROWS>(m, x, x_scales, row, block, put);
  switch (rows - row) {
#if defined(__AVX512F__)
    case 5: return rows_of_blocks<kind, NB, 5>(m, x, x_scales, row, block, put);
    case 4: return rows_of_blocks<kind, NB, 4>(m, x, x_scales, row, block, put);
    case 3: return rows_of_blocks<kind, NB, 3>(m, x, x_scales, row, block, put);
    case 2: return rows_of_blocks<kind, NB, 2>(m, x, x_scales, row, block, put);
#endif
    case 1: return rows_of_blocks<kind, NB, 1>(m, x, x_scales, row, block, put);
  }
}

template <Kind kind, class Put>
void my_outputs(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
  int num_blocks = (m.outputs + LANES - 1) / LANES;
  int num_groups = (num_blocks + BLOCKS - 1) / BLOCKS;
  int block = team.begin(num_groups) * BLOCKS, end = std::min(team.end(num_groups) * BLOCKS, num_blocks);
  for (; block + BLOCKS <= end; block += BLOCKS) all_rows<kind, BLOCKS>(m, x, x_scales, rows, block, put);
  for (; block < end; block++) all_rows<kind, 1>(m, x, x_scales, rows, block, put);
}

// This thread's share of the outputs of matrix times rows; put(row, first output, 16 values) takes them.
template <class Put>
void multiply(const Matrix& m, const uint32_t* x, const float* x_scales, int rows, const Team& team, Put put) {
  if (m.kind == FLOAT32) my_outputs<FLOAT32>(m, x, x_scales, rows, team, put);
  else if (m.kind == BFLOAT16) my_outputs<BFLOAT16>(m, x, x_scales, rows, team, put);
  else my_outputs<INT8>(m, x, x_scales, rows, team, put);
}

// A row in the form that a matrix multiplies; returns its scale.
float prepare(const Matrix& m, const float* x, uint32_t* out) {
  if (m.kind == FLOAT32) {
    std::memcpy(out, x, sizeof(float) * m.inputs);
  } else if (m.kind == BFLOAT16) {
    uint16_t* half = reinterpret_cast<uint16_t*>(out);
    for (int i = 0; i < m.inputs; i++) half[i] = to_bfloat16(x[i]);
    for (int i = m.inputs; i < 2 * m.words; i++) half[i] = 0;
  } else {
    float largest = 1.17549435e-38f;
    for (int i = 0; i < m.inputs; i++) largest = std::max(largest, std::fabs(x[i]));
    float scale = largest / 127;
    uint8_t* byte = reinterpret_cast<uint8_t*>(out);
    for (int i = 0; i < m.inputs; i++) byte[i] = uint8_t(int(std::nearbyint(x[i] / scale)) + 128);
    for (int i = m.inputs; i < 4 * m.words; i++) byte[i] = 128;
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

// Room for the intermediate states of all rows.
struct Step {
  const Model& model;
  const int32_t *tokens, *positions;
  int rows;
  float *x, *first, *middle, *normed, *q, *k, *v, *mixed, *hidden, *gates, *scales, *scores;
  uint32_t *inputs, *hidden_inputs;

  // The same walk counts the floats and hands them out.
  int64_t place(float* base, int threads, int max_room) {
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
    take(scores, int64_t(threads) * (max_room + 2 * model.head_dim + 4 * LANES));
    return used;
  }

  void embed(int row) {
    int C = model.n_embd;
    float *embedding = normed + int64_t(row) * C, *out = x + int64_t(row) * C;
    table_row(model, model.embeddings, tokens[row], C, embedding);
    scaled_norm(embedding, embedding, C, model.eps, 1.0f);
    float opening = 0;
    for (int i = 0; i < model.smear_channels; i++) opening += embedding[i] * model.smear_gate[i];
    float gate = model.smear_lambda * sigmoid(opening);
    table_row(model, model.previous, row, C, out);
    for (int i = 0; i < C; i++) out[i] = embedding[i] + gate * out[i];
    std::memcpy(first + int64_t(row) * C, out, sizeof(float) * C);
    if (model.is_bfloat16)
      for (int i = 0; i < C; i++) static_cast<uint16_t*>(model.previous)[int64_t(row) * C + i] = to_bfloat16(embedding[i]);
    else
      std::memcpy(static_cast<float*>(model.previous) + int64_t(row) * C, embedding, sizeof(float) * C);
  }

  void norm_and_prepare(int row, const float* state, const Matrix& m) {
    float* out = normed + int64_t(row) * model.n_embd;
    scaled_norm(state, out, model.n_embd, model.eps, 1.0f);
    scales[row] = prepare(m, out, inputs + int64_t(row) * m.words);
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

  // One key/value head of one row: store the new key and value, then let the query heads that share them attend.
  void attend(const Layer& layer, int row, int head, float* room) {
    int D = model.head_dim, heads = model.n_kv_head, group = model.n_head / heads, position = positions[row];
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
    rotate(key, position, QK_SCALE);
    int64_t start = (int64_t(row) * heads + head) * layer.room_stride * D;
    float *keys = layer.keys + start, *values = layer.values + start;
    int64_t place = position % layer.room;
    std::memcpy(keys + place * D, key, sizeof(float) * D);
    std::memcpy(values + place * D, value, sizeof(float) * D);
    int count = std::min(position + 1, layer.room);
    for (int member = 0; member < group; member++) {
      int64_t at = (int64_t(row) * model.n_head + head * group + member) * D;
      rotate(q + at, position, QK_SCALE);
      mix(q + at, keys, values, count, room, mixed + at);
    }
  }

  void mix(const float* query, const float* keys, const float* values, int count, float* weights, float* out) {
    int D = model.head_dim;
    float scale = 1.0f / std::sqrt(float(D)), largest = -INFINITY;
    for (int j = 0; j < count; j++) {
      weights[j] = scale * dot(query, keys + int64_t(j) * D, D);
      largest = std::max(largest, weights[j]);
    }
    int padded = (count + LANES - 1) / LANES * LANES;
    for (int j = count; j < padded; j++) weights[j] = -INFINITY;
    Floats sums = {};
    for (int j = 0; j < padded; j += LANES) {
      Floats weight = load<Floats>(weights + j);
      Floats e = exponential(weight - largest);
      e = weight == -INFINITY ? Floats{} : e;
      store(weights + j, e);
      sums += e;
    }
    float factor = 1.0f / total(sums);
    for (int i = 0; i < D; i += LANES) {
      Floats sum = {};
      for (int j = 0; j < count; j++) sum += weights[j] * load<Floats>(values + int64_t(j) * D + i);
      store(out + i, sum * factor);
    }
  }

  void run(const Team& team, int max_room, float* logits) {
    int C = model.n_embd, kv = model.n_kv_head * model.head_dim, first_row = team.begin(rows), end_row = team.end(rows);
    float* room = scores + int64_t(team.thread) * (max_room + 2 * model.head_dim + 4 * LANES);
    auto into = [&](float* to, int width) {
      return [=](int row, int output, Floats values) { put_some(to + int64_t(row) * width + output, values, width - output); };
    };
    auto onto_x = [=, this](int row, int output, Floats values) {
      float* to = x + int64_t(row) * C + output;
      store(to, load<Floats>(to) + values);
    };
    for (int row = first_row; row < end_row; row++) embed(row);
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
      int items = rows * model.n_kv_head;
      for (int item = team.begin(items); item < team.end(items); item++)
        attend(layer, item / model.n_kv_head, item % model.n_kv_head, room);
      team.wait();
      for (int row = first_row; row < end_row; row++)
        scales[row] = prepare(layer.proj, mixed + int64_t(row) * C, inputs + int64_t(row) * layer.proj.words);
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
        scales[row] = prepare(layer.out, hidden + int64_t(row) * 4 * C, hidden_inputs + int64_t(row) * layer.out.words);
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
    int V = model.vocab_size;
    multiply(model.head, inputs, scales, rows, team, [=](int row, int output, Floats z) {
      if (output >= V) return;
      Floats capped = SOFTCAP * (1.0f - 2.0f / (exponential(z * (2.0f / SOFTCAP)) + 1.0f));
      put_some(logits + int64_t(row) * V + output, capped, V - output);
    });
  }
};

}  // namespace

extern "C" {

int64_t workspace_floats(const Model* model, int32_t rows, int32_t threads, int32_t max_room) {
  Step step{*model, nullptr, nullptr, rows};
  return step.place(nullptr, threads, max_room);
}

// Extend the sequences in slots 0 to rows - 1 by a token each; logits is (rows, vocab_size).
void decode_step(const Model* model, const int32_t* tokens, const int32_t* positions, int32_t rows, int32_t threads,
                 int32_t max_room, float* workspace, float* logits) {
  Step step{*model, tokens, positions, rows};
  step.place(workspace, threads, max_room);
  with_team(threads, [&](const Team& team) {
    Step mine = step;
    mine.run(team, max_room, logits);
  });
}

// rows of inputs -> rows of outputs, both in bfloat16 or both in float32.
void linear(const Matrix* m, const void* x, void* y, int32_t rows, int32_t is_bfloat16, int32_t threads) {
  bool is_ready = m->kind == (is_bfloat16 ? BFLOAT16 : FLOAT32) && m->inputs * (is_bfloat16 ? 2 : 4) == m->words * 4;
  std::vector<uint32_t> prepared(is_ready ? 0 : int64_t(rows) * m->words);
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
        scales[row] = prepare(*m, from, prepared.data() + int64_t(row) * m->words);
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
