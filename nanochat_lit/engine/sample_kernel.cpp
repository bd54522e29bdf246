// Choosing the next token of each of several rows of logits, on a CPU; sampling.py says by what rules.
//
// Every row is computed by itself, so neither its neighbours nor the number of threads change its token.

#include <numeric>

#include "vectors.h"

namespace {

constexpr float MIN_TEMPERATURE = 1e-6f;
constexpr int BLOCK = 256;  // a whole number of vectors

// How a row is sampled; temperature 0 takes the likeliest token, top_k 0 and top_p 1 leave all.
struct Setting {
  double temperature, top_p, uniform;
  int32_t top_k;
};

struct Candidate {
  float logit;
  int id;
  bool operator<(const Candidate& other) const {  // likelier, the earlier of equals
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

bool any(Ints lanes) {
  uint64_t word[sizeof(lanes) / 8], all = 0;
  std::memcpy(word, &lanes, sizeof(word));
  for (uint64_t some : word) all |= some;
  return all != 0;
}

float largest(const float* z, int n) {
  Floats most = Floats{} - INFINITY;
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    Floats some = load<Floats>(z + i);
    most = some > most ? some : most;
  }
  float lane[LANES];
  store(lane, most);
  float found = *std::max_element(lane, lane + LANES);
  for (; i < n; i++) found = std::max(found, z[i]);
  return found;
}

// The k likeliest tokens in their order; most of the others are passed a vector at a time.
std::vector<Candidate> likeliest(const float* z, int n, int k) {
  std::vector<Candidate> heap;  // the least likely one is its front
  heap.reserve(k);
  for (int i = 0; i < n;) {
    bool is_full = int(heap.size()) == k;
    if (is_full && i + LANES <= n && !any(load<Floats>(z + i) > heap.front().logit)) {
      i += LANES;
      continue;
    }
    for (int end = std::min(i + LANES, n); i < end; i++) {
      Candidate one{z[i], i};
      if (int(heap.size()) == k) {
        if (!(one < heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
      }
      heap.push_back(one);
      std::push_heap(heap.begin(), heap.end());
    }
  }
  std::sort_heap(heap.begin(), heap.end());
  return heap;
}

// Not yet divided by their sum.
void shares(const float* z, int n, float most, float temperature, float* out) {
  for (int i = 0; i < n; i += LANES) {
    Floats some = Floats{} - INFINITY;
    std::memcpy(&some, z + i, sizeof(float) * std::min(LANES, n - i));
    Floats share = exponential((some - most) / temperature);
    share = some == -INFINITY ? Floats{} : share;
    std::memcpy(out + i, &share, sizeof(float) * std::min(LANES, n - i));
  }
}

// Of candidates in an order, the one at which the sum of shares passes uniform * total; never one without a share.
int passed(const float* share, int n, double before, double threshold) {
  int chosen = 0;
  for (int i = 0; i < n; i++) {
    if (share[i] > 0) chosen = i;
    before += share[i];
    if (before > threshold) break;
  }
  return chosen;
}

int among_all(const float* z, int n, float most, const Setting& s, std::vector<float>& room) {
  room.resize(n);
  shares(z, n, most, s.temperature, room.data());
  std::vector<double> sums;  // of blocks
  for (int i = 0; i < n; i += BLOCK) {
    double lane[LANES] = {};
    for (int j = i; j < std::min(i + BLOCK, n); j++) lane[j % LANES] += room[j];
    sums.push_back(std::accumulate(lane, lane + LANES, 0.0));
  }
  double threshold = s.uniform * std::accumulate(sums.begin(), sums.end(), 0.0), before = 0;
  int block = 0, last = 0;
  for (int i = 0; i < int(sums.size()); i++)
    if (sums[i] > 0) last = i;
  for (; block < last && before + sums[block] <= threshold; block++) before += sums[block];
  int start = block * BLOCK;
  return start + passed(room.data() + start, std::min(BLOCK, n - start), before, threshold);
}

// The likeliest candidates, as many as are needed for top_p, or k of them.
std::vector<Candidate> nucleus(const float* z, int n, float most, const Setting& s, std::vector<float>& room) {
  bool has_k = s.top_k > 0 && s.top_k < n;
  if (has_k) return likeliest(z, n, s.top_k);
  room.resize(n);
  shares(z, n, most, s.temperature, room.data());
  double total = std::accumulate(room.begin(), room.end(), 0.0);
  for (int k = std::min(64, n);; k = std::min(8 * k, n)) {
    std::vector<Candidate> some = likeliest(z, n, k);
    double mass = 0;
    for (const Candidate& one : some) mass += room[one.id];
    if (k == n || mass >= s.top_p * total * (1 + 1e-9)) return some;
  }
}

int choose(const float* z, int n, Setting s, std::vector<float>& room) {
  float most = largest(z, n);
  if (s.temperature == 0) {
    int i = 0;
    while (i + LANES <= n && !any(load<Floats>(z + i) == most)) i += LANES;
    while (i < n - 1 && z[i] != most) i++;
    return i;
  }
  s.temperature = std::max(float(s.temperature), MIN_TEMPERATURE);
  bool has_k = s.top_k > 0 && s.top_k < n;
  if (!has_k && s.top_p >= 1) return among_all(z, n, most, s, room);
  std::vector<Candidate> some = nucleus(z, n, most, s, room);
  double whole = has_k ? 0 : std::accumulate(room.begin(), room.end(), 0.0);
  std::vector<float> logits(some.size()), share(some.size());
  for (size_t i = 0; i < some.size(); i++) logits[i] = some[i].logit;
  shares(logits.data(), int(some.size()), most, s.temperature, share.data());
  if (has_k) whole = std::accumulate(share.begin(), share.end(), 0.0);
  double total = 0;
  size_t kept = 0;
  while (kept < share.size() && (s.top_p >= 1 || total < s.top_p * whole)) total += share[kept++];
  return some[passed(share.data(), int(kept), 0, s.uniform * total)].id;
}

}  // namespace

extern "C" {

// logits is (rows, n); a token for each row.
void sample(const float* logits, int32_t rows, int32_t n, const double* temperatures, const int32_t* top_ks, const double* top_ps,
            const double* uniforms, int32_t threads, int32_t* tokens) {
  with_team(std::min(threads, rows), [&](const Team& team) {
    std::vector<float> room;
    for (int row = team.begin(rows); row < team.end(rows); row++)
      tokens[row] = choose(logits + int64_t(row) * n, n, {temperatures[row], top_ps[row], uniforms[row], top_ks[row]}, room);
  });
}

}  // extern "C"
