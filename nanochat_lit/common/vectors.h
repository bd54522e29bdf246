// Vectors of the processor's own width in the compiler's portable form, and teams of threads: what the package's kernels share.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

// A wider vector than the registers would live on the stack.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

// As a run reports them.
constexpr const char* INSTRUCTIONS =
#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
    "AVX-512 BF16, AMX";
#elif defined(__AVX512BF16__)
    "AVX-512 BF16";
#elif defined(__AVX512F__)
    "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
    "AVX2, AVX-VNNI";
#elif defined(__AVX2__) && defined(__FMA__)
    "AVX2";
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
    "NEON, dot products";
#elif defined(__ARM_NEON)
    "NEON";
#else
    "portable vectors";
#endif

}  // namespace

extern "C" __attribute__((used)) inline const char* instructions() { return INSTRUCTIONS; }

namespace {

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

inline Floats load_wide(const float* from) { return load<Floats>(from); }

inline Floats load_wide(const uint16_t* from) {  // bfloat16
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)  // the portable form takes five instructions
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(from)), 16);
#else
  return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
#endif
}

template <class V> void store(void* to, V v) { std::memcpy(to, &v, sizeof(v)); }

inline uint16_t to_bfloat16(float x) {
  uint32_t word = bits<uint32_t>(x);
  return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);  // to the nearest, ties to even
}

inline float from_bfloat16(uint16_t x) { return bits<float>(uint32_t(x) << 16); }

inline float widened(float x) { return x; }
inline float widened(uint16_t x) { return from_bfloat16(x); }
inline void narrowed(float x, float& to) { to = x; }
inline void narrowed(float x, uint16_t& to) { to = to_bfloat16(x); }

inline void store_narrow(float* to, Floats v) { store(to, v); }

inline void store_narrow(uint16_t* to, Floats v) {  // bfloat16, to the nearest, ties to even
  Words word = (Words)v;
  store(to, __builtin_convertvector((word + 0x7fff + ((word >> 16) & 1)) >> 16, Halves));
}

// a * b + c, rounded once where the processor can. Said explicitly, and compilers are told to fuse nothing by themselves: their
// choice may differ from one copy of a function to the next, and with it the bits.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline Floats fused(Floats a, float b, Floats c) { return fused(a, b - Floats{}, c); }  // 0 + b would be an addition

inline Floats exponential(Floats x) {  // within 2 units in the last place; exp(x) = 2^n * exp(r), |r| <= ln 2 / 2
  const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Floats magic = Floats{} + 12582912.0f;  // adding it rounds to a whole number
  Floats n = fused(x, 1.44269504f, magic) - magic;
  Floats r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
  Floats p = Floats{} + 1.9875691500e-4f;
  for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fused(p, r, Floats{} + term);
  p = fused(p * r, r, r + 1.0f);
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * (Floats)power;
}

inline float total(Floats v) {
  float lane[LANES];
  store(lane, v);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

// In each of two vectors the first `half` lanes of every 2 * half plus the others, one vector's sums after the other's.
template <int half, int... lane> Floats folded(Floats a, Floats b, std::integer_sequence<int, lane...>) {
  constexpr auto from = [](int i) {
    int j = i % (LANES / 2);
    return i / (LANES / 2) * LANES + j / half * 2 * half + j % half;
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(lane)...) + __builtin_shufflevector(a, b, (from(lane) + half)...);
#else
  return __builtin_shuffle(a, b, Ints{from(lane)...}) + __builtin_shuffle(a, b, Ints{(from(lane) + half)...});
#endif
}

// The totals of as many vectors as there are lanes: every step halves them by adding halves of what is left of each.
template <int n = LANES> Floats totals(const Floats (&v)[n]) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    Floats sums[n / 2];
    for (int i = 0; i < n / 2; i++) sums[i] = folded<n / 2>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, LANES>());
    return totals<n / 2>(sums);
  }
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
