// The C++ kernels without Python, so that they can be run under an emulator or a sanitizer: prints numbers that are nearly equal
// on every processor, and ends with status 1 where bits depend on the batch, on chunks or on threads.

#include <cstdio>
#include <cstdlib>
#include <random>

#include "decode_kernel.cpp"

extern "C" {
void sample(const float*, int32_t, int32_t, const double*, const int32_t*, const double*, const double*, int32_t, int32_t*);
void loss_and_gradient(void*, const int64_t*, int64_t, int64_t, const float*, int32_t, int32_t, int32_t, float*);
void muon_momentum(const float* const*, float*, int64_t, int64_t, int64_t, float, int32_t, void*, int32_t);
void muon_combine(uint16_t*, float, const uint16_t*, float, int64_t, int32_t);
void muon_update(float* const*, const void*, float*, int64_t, int64_t, int64_t, float, float, float, int32_t, int32_t);
}

namespace {

constexpr int WIDTH = 48, HEADS = 3, HEAD = 16, VOCABULARY = 50, CONTEXT = 40, LAYERS = 2, SEQUENCES = 5, GATE = 12;

std::mt19937 generator(7);

std::vector<float> numbers(int64_t n, float scale = 0.3f) {
  std::vector<float> out(n);
  for (float& x : out) x = (float(generator() >> 8) / float(1 << 23) - 1.0f) * scale;  // the same on every platform
  return out;
}

void print(const char* name, const float* x, int64_t n, int64_t step = 1) {
  std::printf("%s", name);
  for (int64_t i = 0; i < n; i += step) std::printf(" %.6g", x[i]);
  std::printf("\n");
}

void require_equal(const char* what, const void* a, const void* b, size_t bytes) {
  if (std::memcmp(a, b, bytes) == 0) return;
  std::printf("bits differ: %s\n", what);
  std::exit(1);
}

// A matrix of random weights with the memory that it points to, laid out as KernelLinear does.
struct Weights {
  std::vector<uint32_t> packed;
  std::vector<float> scales;
  std::vector<uint16_t> group_scales;  // of INT4
  std::vector<int32_t> sums;
  Matrix matrix;

  Weights(Kind kind, int outputs, int inputs) {
    int group = kind == FLOAT32 ? 1 : kind == INT8 ? 4 : kind == INT4 ? 8 : 2, blocks = (outputs + BLOCK - 1) / BLOCK;
    int words = (inputs + group - 1) / group;
    if (kind == INT4) words = (words + GROUP_WORDS - 1) / GROUP_WORDS * GROUP_WORDS;
    packed.resize(int64_t(blocks) * words * BLOCK), scales.resize(blocks * BLOCK), sums.resize(blocks * BLOCK);
    std::vector<float> plain = numbers(int64_t(outputs) * inputs);
    for (int o = 0; o < outputs; o++) {
      scales[o] = 0.3f / 127;
      for (int i = 0; i < inputs; i++) {
        float w = plain[int64_t(o) * inputs + i];
        int byte = int(std::nearbyint(w / scales[o]));
        int place = i % 8 < 4 ? 8 * (i % 4) : 8 * (i % 4) + 4;  // of 4 bits
        uint32_t bits_of = kind == FLOAT32 ? bits<uint32_t>(w)
                           : kind == INT4  ? uint32_t(byte / 17 + 8) << place
                           : kind == INT8  ? uint32_t(uint8_t(byte)) << (8 * (i % 4))
                                           : uint32_t(to_bfloat16(w)) << (16 * (i % 2));
        packed[(int64_t(o / BLOCK) * words + i / group) * BLOCK + o % BLOCK] |= bits_of;
        sums[o] += byte;
      }
    }
    group_scales.assign(int64_t(blocks) * BLOCK * words / GROUP_WORDS, to_bfloat16(0.3f / 7));
    const void* its = kind == INT4 ? static_cast<const void*>(group_scales.data()) : scales.data();
    matrix = {packed.data(), its, sums.data(), kind, outputs, inputs, words};
  }
  Weights(const Weights&) = delete;
};

void check_linear(Kind kind, int outputs, int inputs) {
  constexpr int ROWS = 40;
  Weights weights(kind, outputs, inputs);
  std::vector<float> x = numbers(ROWS * inputs, 1.0f), alone(ROWS * outputs), together(ROWS * outputs);
  for (int row = 0; row < ROWS; row++) linear(&weights.matrix, &x[row * inputs], &alone[row * outputs], 1, 0, 1);
  for (int rows : {2, 3, 5, 7, 12, ROWS})
    for (int threads : {1, 3}) {
      linear(&weights.matrix, x.data(), together.data(), rows, 0, threads);
      require_equal("linear", alone.data(), together.data(), sizeof(float) * rows * outputs);
    }
  print("linear", alone.data(), ROWS * outputs, 97);
}

void check_model(Kind kind) {
  struct Parts {
    Weights q, k, v, proj, fc, out;
    std::vector<float> keys, values;
  };
  std::vector<Parts*> parts;
  Layer layers[LAYERS];
  std::vector<float> gate = numbers(GATE), table = numbers(VOCABULARY * HEAD), embeddings = numbers(VOCABULARY * WIDTH, 1.0f);
  std::vector<float> bigram = numbers(VOCABULARY * WIDTH), smear = numbers(24), previous(SEQUENCES * WIDTH);
  std::vector<float> cos(CONTEXT * HEAD / 2), sin(CONTEXT * HEAD / 2);
  for (size_t i = 0; i < cos.size(); i++) cos[i] = std::cos(0.1f * float(i)), sin[i] = std::sin(0.1f * float(i));
  for (int number = 0; number < LAYERS; number++) {
    int room = number == 0 ? 8 : CONTEXT;
    Parts* p = new Parts{{kind, WIDTH, WIDTH}, {kind, HEAD, WIDTH}, {kind, HEAD, WIDTH}, {kind, WIDTH, WIDTH},
                         {kind, 4 * WIDTH, WIDTH}, {kind, WIDTH, 4 * WIDTH},
                         std::vector<float>(SEQUENCES * room * HEAD), std::vector<float>(SEQUENCES * room * HEAD)};
    parts.push_back(p);
    layers[number] = {p->q.matrix, p->k.matrix, p->v.matrix, p->proj.matrix, p->fc.matrix, p->out.matrix,
                      number ? gate.data() : nullptr, number ? table.data() : nullptr, p->keys.data(), p->values.data(),
                      room, room, number == 0 ? 7 : CONTEXT, 1.1f, 0.1f};
  }
  Weights head(kind, VOCABULARY, WIDTH);
  Model model = {layers, head.matrix, embeddings.data(), bigram.data(), previous.data(), cos.data(), sin.data(), smear.data(),
                 0.5f, 0.2f, 1e-7f, LAYERS, WIDTH, HEADS, 1, HEAD, 24, GATE, VOCABULARY, 0, 0};
  int32_t tokens[CONTEXT], positions[CONTEXT];
  for (int i = 0; i < CONTEXT; i++) tokens[i] = i * 7 % VOCABULARY, positions[i] = i;

  // one prompt, whole and in chunks
  std::vector<float> whole(VOCABULARY), logits(SEQUENCES * VOCABULARY), workspace;
  auto read = [&](int chunk, int threads, std::vector<float>& out) {
    std::vector<float> keys(LAYERS * CONTEXT * HEAD), values(LAYERS * CONTEXT * HEAD), before(WIDTH), after(WIDTH);
    for (int start = 0; start < CONTEXT; start += chunk) {
      int rows = std::min(chunk, CONTEXT - start), end = start + rows;
      Reading reading = {keys.data(), values.data(), start ? before.data() : nullptr, after.data(), CONTEXT};
      workspace.resize(workspace_floats(&model, rows, threads, end));
      run_step(&model, &reading, tokens + start, tokens + start, positions + start, rows, threads, end, workspace.data(), out.data());
      std::swap(before, after);
    }
  };
  read(CONTEXT, 1, whole);
  print(kind == INT4 ? "rounded_prompt" : "prompt", whole.data(), VOCABULARY);
  for (int chunk : {1, 7, 30})
    for (int threads : {1, 3}) {
      read(chunk, threads, logits);
      require_equal("prompt", whole.data(), logits.data(), sizeof(float) * VOCABULARY);
    }

  // several sequences together, and the first of them alone
  auto decode = [&](int rows, int threads) {
    for (Parts* p : parts) std::fill(p->keys.begin(), p->keys.end(), 0.0f), std::fill(p->values.begin(), p->values.end(), 0.0f);
    std::fill(previous.begin(), previous.end(), 0.0f);
    for (int step = 0; step < 20; step++) {
      int32_t own[SEQUENCES], at[SEQUENCES];
      for (int row = 0; row < rows; row++) own[row] = (row * 11 + step * 3) % VOCABULARY, at[row] = step;
      workspace.resize(workspace_floats(&model, rows, threads, CONTEXT));
      run_step(&model, nullptr, own, own, at, rows, threads, CONTEXT, workspace.data(), logits.data());
    }
  };
  decode(1, 1);
  std::copy_n(logits.begin(), VOCABULARY, whole.begin());
  print(kind == INT4 ? "rounded_decode" : "decode", whole.data(), VOCABULARY);
  for (int rows : {2, SEQUENCES})
    for (int threads : {1, 3}) {
      decode(rows, threads);
      require_equal("decode", whole.data(), logits.data(), sizeof(float) * VOCABULARY);
    }
  for (Parts* p : parts) delete p;
}

void check_sampling() {
  constexpr int ROWS = 4, SIZE = 1003;
  std::vector<float> z = numbers(ROWS * SIZE, 8.0f);
  double temperatures[] = {0, 1, 0.7, 1.3}, ps[] = {1, 1, 0.9, 1}, uniforms[] = {0, 0.3, 0.6, 0.9};
  int32_t ks[] = {0, 0, 0, 40}, tokens[ROWS];
  sample(z.data(), ROWS, SIZE, temperatures, ks, ps, uniforms, 2, tokens);
  std::printf("sample %d %d %d %d\n", tokens[0], tokens[1], tokens[2], tokens[3]);
}

void check_loss() {
  constexpr int ROWS = 3, SIZE = 77;
  for (int is_capped : {1, 0}) {
    std::vector<float> logits = numbers(ROWS * SIZE, 20.0f), losses(ROWS);
    int64_t targets[] = {5, -1, 76};
    loss_and_gradient(logits.data(), targets, ROWS, SIZE, nullptr, 0, is_capped, 2, losses.data());
    print("loss", losses.data(), ROWS);
    print("gradient", logits.data(), ROWS * SIZE, 13);
  }
}

template <class T> void check_muon(int64_t rows, int64_t columns) {
  constexpr int COUNT = 2;
  int64_t size = rows * columns, neurons = std::max(rows, columns);
  std::vector<float> gradients = numbers(COUNT * size), parameters = numbers(COUNT * size), buffers = numbers(COUNT * size);
  std::vector<float> moments(COUNT * neurons, 0.01f);
  std::vector<T> directions(COUNT * size);
  const float* g[] = {gradients.data(), gradients.data() + size};
  float* p[] = {parameters.data(), parameters.data() + size};
  int32_t is_bfloat16 = sizeof(T) == 2;
  muon_momentum(g, buffers.data(), COUNT, rows, columns, 0.9f, 2, directions.data(), is_bfloat16);
  if constexpr (sizeof(T) == 2) muon_combine(directions.data(), 1.5f, directions.data(), -0.25f, COUNT * size, 2);
  muon_update(p, directions.data(), moments.data(), COUNT, rows, columns, 0.9f, 0.1f, 0.1f, 2, is_bfloat16);
  print("muon", parameters.data(), COUNT * size, 31);
}

}  // namespace

int main() {
  std::fprintf(stderr, "%s\n", instructions());
  for (Kind kind : {FLOAT32, BFLOAT16, INT8, WIDENED, INT4}) {
    for (auto [outputs, inputs] : {std::pair{100, 60}, {16, 3}, {257, 96}}) check_linear(kind, outputs, inputs);
    check_model(kind);
  }
  check_sampling();
  check_loss();
  for (auto [rows, columns] : {std::pair{30, 50}, {50, 30}, {32, 32}}) check_muon<float>(rows, columns), check_muon<uint16_t>(rows, columns);
}
