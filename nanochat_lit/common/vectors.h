// Vectors of 16 lanes in the compiler's portable form, and teams of threads: what the package's kernels share.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr float SOFTCAP = 15.0f;

template <class To, class From> To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V> V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

Floats load_wide(const float* from) { return load<Floats>(from); }

Floats load_wide(const uint16_t* from) {  // bfloat16
  return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

template <class V> void store(void* to, V v) { std::memcpy(to, &v, sizeof(v)); }

uint16_t to_bfloat16(float x) {
  uint32_t word = bits<uint32_t>(x);
  return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);  // to the nearest, ties to even
}

float from_bfloat16(uint16_t x) { return bits<float>(uint32_t(x) << 16); }

void store_narrow(float* to, Floats v) { store(to, v); }

void store_narrow(uint16_t* to, Floats v) {  // bfloat16, to the nearest, ties to even
  Words word = (Words)v;
  store(to, __builtin_convertvector((word + 0x7fff + ((word >> 16) & 1)) >> 16, Halves));
}

Floats exponential(Floats x) {  // within 2 units in the last place; exp(x) = 2^n * exp(r), |r| <= ln 2 / 2
  const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Floats magic = Floats{} + 12582912.0f;  // adding it rounds to a whole number
  Floats n = (x * 1.44269504f + magic) - magic;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * (Floats)power;
}

float total(Floats v) {
  float lane[LANES];
  store(lane, v);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The totals of 16 vectors, each as `total` adds it: every step halves them by adding halves of what is left of each.
Floats totals(const Floats (&v)[LANES]) {
  Floats a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    b[i] = SHUFFLE(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    c[i] = SHUFFLE(b[2 * i], b[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           SHUFFLE(b[2 * i], b[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  return SHUFFLE(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

struct Team {
  int thread, size;
  int begin(int n) const { return int(int64_t(n) * thread / size); }
  int end(int n) const { return int(int64_t(n) * (thread + 1) / size); }
  void wait() const {
#pragma omp barrier
  }
};

template <class Work> void with_team(int threads, Work work) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
#else
  (void)threads;
  work(Team{0, 1});
#endif
}

}  // namespace
