// What Muon does beside its matrix products, on a CPU: each matrix is read and written once before them and once after.
//
// Stacks are `count` matrices of `rows` x `columns`; their parameters and gradients lie wherever they are, one pointer each.

#include "vectors.h"

namespace {

// Does `whole(i)` for each LANES elements from i on, and `single(i)` for those that are left.
template <class Whole, class Single> void along(int64_t size, Whole whole, Single single) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) whole(i);
  for (; i < size; i++) single(i);
}

template <class T> float squares(const T* row, int64_t size) {
  Floats sums = {};
  float rest = 0.0f;
  along(
      size, [&](int64_t i) { Floats v = load_wide(row + i); sums += v * v; },
      [&](int64_t i) { float v = widened(row[i]); rest += v * v; });
  return total(sums) + rest;
}

// Moves the buffers towards the gradients and makes `out`: Nesterov's momentum with rows of one norm, of matrices whose
// Frobenius norm is a little below 1.
template <class T>
void momentum_step(const float* const* gradients, float* buffers, int64_t count, int64_t rows, int64_t columns, float momentum,
                   int32_t threads, T* out) {
  std::vector<float> norms(count * rows), scales(count * rows);
  with_team(threads, [&](const Team& team) {
    int all = int(count * rows);
    for (int r = team.begin(all); r < team.end(all); r++) {
      const float* gradient = gradients[r / rows] + r % rows * columns;
      float* buffer = buffers + r * columns;
      T* row = out + r * columns;
      along(
          columns,
          [&](int64_t i) {
            Floats g = load<Floats>(gradient + i), b = load<Floats>(buffer + i);
            b += (1.0f - momentum) * (g - b);
            store(buffer + i, b);
            store_narrow(row + i, g + momentum * (b - g));
          },
          [&](int64_t i) {
            buffer[i] += (1.0f - momentum) * (gradient[i] - buffer[i]);
            narrowed(gradient[i] + momentum * (buffer[i] - gradient[i]), row[i]);
          });
      norms[r] = std::sqrt(squares(row, columns));
    }
    team.wait();
    for (int k = team.begin(int(count)); k < team.end(int(count)); k++) {
      const float* norm = norms.data() + k * rows;
      float* scale = scales.data() + k * rows;
      double sum = 0.0, scaled = 0.0;
      for (int64_t r = 0; r < rows; r++) sum += double(norm[r]) * norm[r];
      float mean = float(std::sqrt(sum / double(rows)));
      for (int64_t r = 0; r < rows; r++) {
        scale[r] = mean / std::max(norm[r], 1e-6f);
        scaled += double(norm[r] * scale[r]) * (norm[r] * scale[r]);
      }
      float whole = 1.0f / (float(std::sqrt(scaled)) * 1.01f + 1e-6f);
      for (int64_t r = 0; r < rows; r++) scale[r] *= whole;
    }
    team.wait();
    for (int r = team.begin(all); r < team.end(all); r++) {
      T* row = out + r * columns;
      float scale = scales[r];
      along(
          columns, [&](int64_t i) { store_narrow(row + i, load_wide(row + i) * scale); },
          [&](int64_t i) { narrowed(widened(row[i]) * scale, row[i]); });
    }
  });
}

// Steps against the directions: scaled to the norm of an orthogonal matrix, with neurons evened out by their running mean
// squares (`moments`, one a row of tall and square matrices, one a column of wide ones), with decay where it pulls the same way.
template <class T>
void update(float* const* parameters, const T* directions, float* moments, int64_t count, int64_t rows, int64_t columns,
            float beta2, float lr, float weight_decay, int32_t threads) {
  bool by_row = rows >= columns;
  int64_t neurons = by_row ? rows : columns, size = by_row ? columns : rows;
  std::vector<float> sums(count * neurons);  // of squares, then what each neuron's direction is multiplied with
  with_team(threads, [&](const Team& team) {
    int all = int(count * rows);
    if (by_row) {
      for (int r = team.begin(all); r < team.end(all); r++) sums[r] = squares(directions + r * columns, columns);
    } else {
      int64_t blocks = (columns + LANES - 1) / LANES;
      for (int b = team.begin(int(count * blocks)); b < team.end(int(count * blocks)); b++) {
        const T* matrix = directions + b / blocks * rows * columns;
        float* sum = sums.data() + b / blocks * columns;
        int64_t first = b % blocks * LANES, last = std::min(first + LANES, columns);
        for (int64_t r = 0; r < rows; r++)
          for (int64_t i = first; i < last; i++) {
            float v = widened(matrix[r * columns + i]);
            sum[i] += v * v;
          }
      }
    }
    team.wait();
    for (int k = team.begin(int(count)); k < team.end(int(count)); k++) {
      float *sum = sums.data() + k * neurons, *moment = moments + k * neurons;
      double norm = 0.0, before = 0.0, after = 0.0;
      for (int64_t i = 0; i < neurons; i++) norm += sum[i];
      float scale = std::sqrt(float(std::min(rows, columns))) / std::max(float(std::sqrt(norm)), 1e-6f);
      for (int64_t i = 0; i < neurons; i++) {
        float mean_square = sum[i] * scale * scale / float(size);
        moment[i] += (1.0f - beta2) * (mean_square - moment[i]);
        sum[i] = 1.0f / std::sqrt(std::max(moment[i], 1e-10f));
        before += mean_square;
        after += double(mean_square) * sum[i] * sum[i];
      }
      float kept = float(std::sqrt(before * double(size)) / std::max(std::sqrt(after * double(size)), 1e-10));
      for (int64_t i = 0; i < neurons; i++) sum[i] *= scale * kept;
    }
    team.wait();
    for (int r = team.begin(all); r < team.end(all); r++) {
      float* parameter = parameters[r / rows] + r % rows * columns;
      const T* direction = directions + r * columns;
      const float* factor = sums.data() + (by_row ? r : r / rows * columns);
      along(
          columns,
          [&](int64_t i) {
            Floats p = load<Floats>(parameter + i);
            Floats d = load_wide(direction + i) * (by_row ? Floats{} + *factor : load<Floats>(factor + i));
            Floats decay = d * p >= 0.0f ? p * weight_decay : Floats{};
            store(parameter + i, p - lr * (d + decay));
          },
          [&](int64_t i) {
            float p = parameter[i], d = widened(direction[i]) * factor[by_row ? 0 : i];
            parameter[i] = p - lr * (d + (d * p >= 0.0f ? p * weight_decay : 0.0f));
          });
    }
  });
}

}  // namespace

extern "C" {

void muon_momentum(const float* const* gradients, float* buffers, int64_t count, int64_t rows, int64_t columns, float momentum,
                   int32_t threads, void* out, int32_t is_bfloat16) {
  auto step = [&](auto* to) { momentum_step(gradients, buffers, count, rows, columns, momentum, threads, to); };
  if (is_bfloat16) step(static_cast<uint16_t*>(out));
  else step(static_cast<float*>(out));
}

// x = a x + b y, element by element, in bfloat16.
void muon_combine(uint16_t* x, float a, const uint16_t* y, float b, int64_t size, int32_t threads) {
  with_team(threads, [=](const Team& team) {
    int64_t first = size / LANES * team.thread / team.size * LANES;
    int64_t last = team.thread == team.size - 1 ? size : size / LANES * (team.thread + 1) / team.size * LANES;
    along(
        last - first,
        [&](int64_t i) { store_narrow(x + first + i, a * load_wide(x + first + i) + b * load_wide(y + first + i)); },
        [&](int64_t i) { narrowed(a * widened(x[first + i]) + b * widened(y[first + i]), x[first + i]); });
  });
}

void muon_update(float* const* parameters, const void* directions, float* moments, int64_t count, int64_t rows, int64_t columns,
                 float beta2, float lr, float weight_decay, int32_t threads, int32_t is_bfloat16) {
  auto step = [&](auto* from) { update(parameters, from, moments, count, rows, columns, beta2, lr, weight_decay, threads); };
  if (is_bfloat16) step(static_cast<const uint16_t*>(directions));
  else step(static_cast<const float*>(directions));
}

}  // extern "C"
