// Scores and weighted sums over whole cache records that hold several key or value heads side by side, for one or a few
// query rows a head (decoding with grouped-query attention). Included inside the namespace of one instruction set.
//
// A record is read once, from its start to its end, for all heads: head by head, each head's part of all records would
// come from memory in pieces of a few cache lines, kilobytes apart, which no prefetcher follows.
//
// bf16 numbers are widened in pairs, which is half the work: within every whole 2 * kLanes numbers of a head the even
// ones come first in queries and sums ("pair order"); what is left over at a head's end is in natural order.

static inline void LoadTwo(const float* p, Vec& a, Vec& b) {
  a = Load(p);
  b = Load(p + kLanes);
}
static inline void LoadTwo(const Bf16* p, Vec& even, Vec& odd) {
  const Vec pairs = Load(reinterpret_cast<const float*>(p));
  even = EvenBf16(pairs);
  odd = OddBf16(pairs);
}

// x to pair order, or back from it.
static void PairOrder(const float* x, float* out, int64_t n, bool back) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes)
    for (int j = 0; j < 2 * kLanes; ++j) {
      const int64_t pair = i + j / 2 + j % 2 * kLanes;
      if (back) out[i + j] = x[pair];
      else out[pair] = x[i + j];
    }
  for (; i < n; ++i) out[i] = x[i];
}

// K records at a time share what is loaded of the queries or sums.
template <typename T, int K, int G>
static void ScoreRecords(const RecordArgs& a, int64_t key) {
  const T* record[K];
  for (int k = 0; k < K; ++k) record[k] = static_cast<const T*>(a.records[key + k]);
  const int64_t ahead = Smaller(key + K, a.keys - K);
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* query = a.rows + h * G * a.dim;
    Vec acc[K][G];
    for (int k = 0; k < K; ++k)
      for (int g = 0; g < G; ++g) acc[k][g] = Zero();
    int64_t d = 0;
    for (; d + 2 * kLanes <= a.dim; d += 2 * kLanes) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        __builtin_prefetch(static_cast<const T*>(a.records[ahead + k]) + h * a.dim + d);
        Vec x, y;
        LoadTwo(record[k] + h * a.dim + d, x, y);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          acc[k][g] = MulAdd(x, Load(query + g * a.dim + d), acc[k][g]);
          acc[k][g] = MulAdd(y, Load(query + g * a.dim + d + kLanes), acc[k][g]);
        }
      }
    }
    for (; d < a.dim; d += kLanes) {
      const int64_t n = Smaller(kLanes, a.dim - d);
      for (int k = 0; k < K; ++k)
        for (int g = 0; g < G; ++g)
          acc[k][g] =
              MulAdd(LoadPartial(record[k] + h * a.dim + d, n), LoadPartial(query + g * a.dim + d, n), acc[k][g]);
    }
    for (int k = 0; k < K; ++k)
      for (int g = 0; g < G; ++g) a.weights[(key + k) * kTileRows + h * G + g] = ReduceAdd(acc[k][g]);
  }
}

template <typename T, int K, int G>
static void SumRecords(const RecordArgs& a, int64_t key) {
  const T* record[K];
  for (int k = 0; k < K; ++k) record[k] = static_cast<const T*>(a.records[key + k]);
  const int64_t ahead = Smaller(key + K, a.keys - K);
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* weights = a.weights + key * kTileRows + h * G;
    int64_t d = 0;
    for (; d + 2 * kLanes <= a.dim; d += 2 * kLanes) {
      Vec x[K], y[K];
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        __builtin_prefetch(static_cast<const T*>(a.records[ahead + k]) + h * a.dim + d);
        LoadTwo(record[k] + h * a.dim + d, x[k], y[k]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        float* out = a.rows + (h * G + g) * a.dim + d;
        Vec u = Load(out), v = Load(out + kLanes);
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          const Vec w = Set1(weights[k * kTileRows + g]);
          u = MulAdd(w, x[k], u);
          v = MulAdd(w, y[k], v);
        }
        Store(out, u);
        Store(out + kLanes, v);
      }
    }
    for (; d < a.dim; d += kLanes) {
      const int64_t n = Smaller(kLanes, a.dim - d);
      for (int g = 0; g < G; ++g) {
        float* out = a.rows + (h * G + g) * a.dim + d;
        Vec u = LoadPartial(out, n);
        for (int k = 0; k < K; ++k)
          u = MulAdd(Set1(weights[k * kTileRows + g]), LoadPartial(record[k] + h * a.dim + d, n), u);
        StorePartial(out, u, n);
      }
    }
  }
}

template <typename T, int G>
static void ScoreGroups(const RecordArgs& a) {
  int64_t key = 0;
  for (; key + 4 <= a.keys; key += 4) ScoreRecords<T, 4, G>(a, key);
  for (; key < a.keys; ++key) ScoreRecords<T, 1, G>(a, key);
}
template <typename T, int G>
static void SumGroups(const RecordArgs& a) {
  int64_t key = 0;
  for (; key + 4 <= a.keys; key += 4) SumRecords<T, 4, G>(a, key);
  for (; key < a.keys; ++key) SumRecords<T, 1, G>(a, key);
}

template <typename T>
static void RecordScores(const RecordArgs& a) {
  constexpr void (*kByGroup[])(const RecordArgs&) = {ScoreGroups<T, 1>, ScoreGroups<T, 2>, ScoreGroups<T, 3>,
                                                     ScoreGroups<T, 4>};
  kByGroup[a.group - 1](a);
}
template <typename T>
static void RecordSums(const RecordArgs& a) {
  constexpr void (*kByGroup[])(const RecordArgs&) = {SumGroups<T, 1>, SumGroups<T, 2>, SumGroups<T, 3>,
                                                     SumGroups<T, 4>};
  kByGroup[a.group - 1](a);
}
