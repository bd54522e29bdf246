// Cross entropy of a chunk of logits on a CPU, with a softcap or without: a row's gradient takes its place.

#include "vectors.h"

namespace {

// r = 1 / (exp(2x / 15) + 1) gives the softcap, 15 tanh(x / 15) = 15 (1 - 2r), and its slope, 4r(1 - r).
Floats squeeze(Floats logits) { return 1.0f / (exponential(logits * (2.0f / SOFTCAP)) + 1.0f); }

// The largest logit of a row, which keeps the exponentials of those without a softcap within range.
template <class T> float highest(const T* logits, int64_t size, int64_t whole) {
  Floats most = Floats{} + widened(logits[0]);
  for (int64_t i = 0; i < whole; i += LANES) {
    Floats x = load_wide(logits + i);
    most = x > most ? x : most;
  }
  float lane[LANES];
  store(lane, most);
  float found = *std::max_element(lane, lane + LANES);
  for (int64_t i = whole; i < size; i++) found = std::max(found, widened(logits[i]));
  return found;
}

// Loss of one row, whose gradient replaces it; `slopes` has room for whole vectors of a row, as has `weights`: factors on the
// exponentials of a sampled softmax, 1 at the targets.
template <bool is_capped, class T> float row_loss(T* logits, int64_t size, int64_t target, float* slopes, const float* weights) {
  T last[LANES] = {};
  int64_t whole = size / LANES * LANES;
  std::memcpy(last, logits + whole, (size - whole) * sizeof(T));
  float most = is_capped ? SOFTCAP : highest(logits, size, whole);
  Floats sums = {};
  auto take = [&](Floats logit, int64_t at) {
    float* slope = slopes + at;
    Floats weight = load<Floats>(weights + at);
    if constexpr (is_capped) {
      Floats r = squeeze(logit);
      Floats e = weight * exponential(SOFTCAP - 2.0f * SOFTCAP * r);
      store(slope, e * (r - r * r));
      return e;
    } else {
      Floats e = weight * exponential(logit - most);
      store(slope, e);
      return e;
    }
  };
  for (int64_t i = 0; i < whole; i += LANES) sums += take(load_wide(logits + i), i);
  float sum = total(sums);
  float rest[LANES];
  store(rest, take(load_wide(last), whole));
  for (int64_t i = whole; i < size; i++) sum += rest[i - whole];

  float own = widened(logits[target]) - most, factor = 1.0f / sum;
  if constexpr (is_capped) {
    T one[LANES] = {logits[target]};
    float r = squeeze(load_wide(one))[0];
    own = SOFTCAP - 2.0f * SOFTCAP * r;
    slopes[target] -= sum * (r - r * r);
    factor = 4.0f / sum;
  } else {
    slopes[target] -= sum;
  }
  for (int64_t i = 0; i < whole; i += LANES) store_narrow(logits + i, load<Floats>(slopes + i) * factor);
  store_narrow(last, load<Floats>(slopes + whole) * factor);
  std::memcpy(logits + whole, last, (size - whole) * sizeof(T));
  return std::log(sum) - own;
}

template <bool is_capped, class T>
void chunk(T* logits, const int64_t* targets, int64_t rows, int64_t size, const float* factors, int threads, float* losses) {
  std::vector<float> padded(size + LANES, 1.0f);
  if (factors) std::copy(factors, factors + size, padded.begin());
  const float* weights = padded.data();
  with_team(threads, [=](const Team& team) {
    std::vector<float> slopes(size + LANES);
    for (int64_t row = team.begin(int(rows)); row < team.end(int(rows)); row++) {
      T* own = logits + row * size;
      if (targets[row] < 0) {
        std::memset(own, 0, size * sizeof(T));
        losses[row] = 0.0f;
      } else {
        losses[row] = row_loss<is_capped>(own, size, targets[row], slopes.data(), weights);
      }
    }
  });
}

}  // namespace

// sums (size) += added (size), bfloat16.
extern "C" void add_bfloat16(float* sums, const uint16_t* added, int64_t size, int32_t threads) {
  with_team(threads, [=](const Team& team) {
    int64_t blocks = size / LANES, first = blocks * team.thread / team.size, last = blocks * (team.thread + 1) / team.size;
    for (int64_t i = first * LANES; i < last * LANES; i += LANES) store(sums + i, load<Floats>(sums + i) + load_wide(added + i));
    if (team.thread == team.size - 1)
      for (int64_t i = blocks * LANES; i < size; i++) sums[i] += from_bfloat16(added[i]);
  });
}

// logits (rows, size), bfloat16 or float32; targets (rows), below 0 where the row does not count; losses (rows); factors (size) or
// null.
extern "C" void loss_and_gradient(
    void* logits, const int64_t* targets, int64_t rows, int64_t size, const float* factors, int32_t is_bfloat16, int32_t is_capped,
    int32_t threads, float* losses) {
  auto run = [=](auto* own) {
    if (is_capped) chunk<true>(own, targets, rows, size, factors, threads, losses);
    else chunk<false>(own, targets, rows, size, factors, threads, losses);
  };
  if (is_bfloat16) run(static_cast<uint16_t*>(logits));
  else run(static_cast<float*>(logits));
}
