// The lambdas applied to their queries, forward and backward, by fast Fourier transforms.
//
//   lambda[k,v,m] = content[k,v] + sum_d W[k,d] v[m+d,v],    y[m,h,v] = sum_k q[m,h,k] lambda[k,v,m]
//
// Two keys k, being real, are the real and the imaginary part of one complex map: a pair. A vector
// holds one position of as many values v as it has lanes or, with fewer values, of several pairs of
// keys: lane p S + s is value s of pair p. So a transform has no shuffles and a lambda meets its
// query while it is in a register. Only one vector's maps exist at a time.
//
// Layouts, last axis fastest: q, dq [image][position][head][key]; v, dv [image][position][value];
// y, g [image][position][head][value]; content [image][key][value]; W [key][row][column].
// Symbols: a hat (v^, z^) is a spectrum, f = (fy, fx) a frequency, F the transform without a
// factor and F* its adjoint, which is the inverse times the number of positions.
//
// Each image is processed by one thread, and sums over images are taken in order: results
// do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace {

// That of a register: wider vectors would live in memory, and take three times as long.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kAlignment = 64;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
struct Complex {
  Vec<T> re, im;
};

#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED

template <class T>
INLINE Vec<T> load(const T* from, int count) {
  Vec<T> x = {};
  if (count >= kLanes<T>)
    std::memcpy(&x, from, kVectorBytes);
  else
    std::memcpy(&x, from, count * sizeof(T));
  return x;
}

template <class T>
INLINE void store(T* to, Vec<T> x, int count) {
  if (count >= kLanes<T>)
    std::memcpy(to, &x, kVectorBytes);
  else
    std::memcpy(to, &x, count * sizeof(T));
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size)
      : data_(static_cast<T*>(std::aligned_alloc(kAlignment, bytes(size))), &std::free) {
    if (!data_) std::abort();
    std::memset(static_cast<void*>(data_.get()), 0, bytes(size));
  }
  T* get() { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }

 private:
  static size_t bytes(size_t size) {
    return (std::max<size_t>(size, 1) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// ---------------------------------------------------------------------- sums over a vector's lanes

// out[l] is a[l] + a[l ^ D] in lanes without bit D, b's in the others.
template <int D, class V, int... I>
INLINE V fold(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  V kept = __builtin_shufflevector(a, b, (I & D ? L + I : I)...);
  V moved = __builtin_shufflevector(a, b, (I & D ? L + (I ^ D) : (I ^ D))...);
  return kept + moved;
}

// Lane l of the result is the sum over the lanes of x[l].
template <class T, int D = 1>
INLINE Vec<T> sums_of_lanes(Vec<T>* x) {
  constexpr int L = kLanes<T>;
  if constexpr (D == L) {
    return x[0];
  } else {
    for (int i = 0; i < L / D / 2; ++i)
      x[i] = fold<D>(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, L>());
    return sums_of_lanes<T, 2 * D>(x);
  }
}

// Adds the sums over lanes of successive vectors to successive numbers, from `to` on.
template <class T>
class LaneSums {
 public:
  explicit LaneSums(T* to) : to_(to) {}
  INLINE void push(Vec<T> x) {
    waiting_[count_++] = x;
    if (count_ == kLanes<T>) flush();
  }
  void flush() {
    for (int i = count_; i < kLanes<T>; ++i) waiting_[i] = Vec<T>{};
    store<T>(to_, load<T>(to_, count_) + sums_of_lanes<T>(waiting_), count_);
    to_ += count_;
    count_ = 0;
  }

 private:
  T* to_;
  int count_ = 0;
  Vec<T> waiting_[kLanes<T>];
};

// --------------------------------------------------- vectors of L / S slots, each of S lanes

// Lane l of the result is lane I[l] of x.
template <class V, int... I>
INLINE V pick(V x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, I...);
}

template <class Lane, int... I>
constexpr auto lanes_of(Lane, std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, Lane::of(I)...>();
}

// Lane l of the result is lane Lane::of(l) of x.
template <class T, class Lane>
INLINE Vec<T> picked(Vec<T> x) {
  return pick(x, lanes_of(Lane(), std::make_integer_sequence<int, kLanes<T>>()));
}

template <int S>
struct InSlot {
  static constexpr int of(int l) { return l % S; }
};
template <int S, int Part>
struct PairOfSlot {
  static constexpr int of(int l) { return 2 * (l / S) + Part; }
};
template <int D>
struct Across {
  static constexpr int of(int l) { return l ^ D; }
};
template <class T, int S>
struct FirstTwo {
  static constexpr int of(int l) { return (l / 2 * S + l % 2) % kLanes<T>; }
};

// `count` <= S numbers, in every slot.
template <class T, int S>
INLINE Vec<T> load_slots(const T* from, int count) {
  if constexpr (S == kLanes<T>) return load<T>(from, count);
  Vec<T> x = {};
  if (count == S)
    std::memcpy(&x, from, S * sizeof(T));
  else
    std::memcpy(&x, from, count * sizeof(T));
  return picked<T, InSlot<S>>(x);
}

// A pair of numbers for each slot, in all its lanes, as real and imaginary part; zero after `count`.
template <class T, int S>
INLINE Complex<T> load_pairs(const T* from, int count) {
  constexpr int P = kLanes<T> / S;
  if constexpr (P == 1) return {Vec<T>{} + from[0], Vec<T>{} + (count > 1 ? from[1] : T(0))};
  Vec<T> x = {};
  if (count >= 2 * P)
    std::memcpy(&x, from, 2 * P * sizeof(T));
  else
    std::memcpy(&x, from, count * sizeof(T));
  return {picked<T, PairOfSlot<S, 0>>(x), picked<T, PairOfSlot<S, 1>>(x)};
}

// The reverse: stores the sums over each slot's lanes.
template <class T, int S>
INLINE void store_pair_sums(T* to, Complex<T> z, int count) {
  Vec<T> x = fold<1>(z.re, z.im, std::make_integer_sequence<int, kLanes<T>>());
  if constexpr (S > 2) x += picked<T, Across<2>>(x);
  if constexpr (S > 4) x += picked<T, Across<4>>(x);
  if constexpr (S > 2) x = picked<T, FirstTwo<T, S>>(x);
  constexpr int size = 2 * kLanes<T> / S;
  if (count >= size)
    std::memcpy(to, &x, size * sizeof(T));
  else
    std::memcpy(to, &x, count * sizeof(T));
}

// The sum over slots, in every slot.
template <class T, int S>
INLINE Vec<T> sum_of_slots(Vec<T> x) {
  if constexpr (S < kLanes<T>) {
    x += picked<T, Across<S>>(x);
    return sum_of_slots<T, 2 * S>(x);
  }
  return x;
}

// ------------------------------------------------------------------------------------- transforms

template <class T>
INLINE void dft2(Complex<T>& a, Complex<T>& b) {
  Complex<T> sum = {a.re + b.re, a.im + b.im};
  b = {a.re - b.re, a.im - b.im};
  a = sum;
}

template <class T>
INLINE void dft3(Complex<T>& a, Complex<T>& b, Complex<T>& c) {
  const T half = T(0.5), s = T(0.86602540378443864676);
  Complex<T> sum = {b.re + c.re, b.im + c.im};
  Vec<T> dr = s * (b.im - c.im), di = s * (b.re - c.re);
  Vec<T> mr = a.re - half * sum.re, mi = a.im - half * sum.im;
  a = {a.re + sum.re, a.im + sum.im};
  b = {mr + dr, mi - di};
  c = {mr - dr, mi + di};
}

template <class T>
INLINE void dft4(Complex<T>& a, Complex<T>& b, Complex<T>& c, Complex<T>& d) {
  dft2(a, c);
  dft2(b, d);
  dft2(a, b);
  Complex<T> e = {c.re + d.im, c.im - d.re};
  Complex<T> f = {c.re - d.im, c.im + d.re};
  c = b;
  b = e;
  d = f;
}

template <class T>
INLINE void dft5(Complex<T>& a, Complex<T>& b, Complex<T>& c, Complex<T>& d, Complex<T>& e) {
  const T c1 = T(0.30901699437494742410), c2 = T(-0.80901699437494742410);
  const T s1 = T(0.95105651629515357212), s2 = T(0.58778525229247312917);
  Complex<T> p = {b.re + e.re, b.im + e.im}, q = {c.re + d.re, c.im + d.im};
  Complex<T> u = {b.re - e.re, b.im - e.im}, w = {c.re - d.re, c.im - d.im};
  Vec<T> r1 = a.re + c1 * p.re + c2 * q.re, i1 = a.im + c1 * p.im + c2 * q.im;
  Vec<T> r2 = a.re + c2 * p.re + c1 * q.re, i2 = a.im + c2 * p.im + c1 * q.im;
  Vec<T> x1 = s1 * u.im + s2 * w.im, y1 = s1 * u.re + s2 * w.re;
  Vec<T> x2 = s2 * u.im - s1 * w.im, y2 = s2 * u.re - s1 * w.re;
  a = {a.re + p.re + q.re, a.im + p.im + q.im};
  b = {r1 + x1, i1 - y1};
  e = {r1 - x1, i1 + y1};
  c = {r2 + x2, i2 - y2};
  d = {r2 - x2, i2 + y2};
}

template <class T>
INLINE Complex<T> times(Complex<T> a, T re, T im) {
  return {a.re * re - a.im * im, a.re * im + a.im * re};
}

template <class T>
INLINE Complex<T> times(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class T>
INLINE void dft8(Complex<T>* x) {
  const T s = T(0.70710678118654752440);
  dft4(x[0], x[2], x[4], x[6]);
  dft4(x[1], x[3], x[5], x[7]);
  x[3] = {s * (x[3].re + x[3].im), s * (x[3].im - x[3].re)};
  x[5] = {x[5].im, -x[5].re};
  x[7] = {s * (x[7].im - x[7].re), -s * (x[7].re + x[7].im)};
  for (int j = 0; j < 8; j += 2) dft2(x[j], x[j + 1]);
  Complex<T> y[8] = {x[0], x[2], x[4], x[6], x[1], x[3], x[5], x[7]};
  for (int j = 0; j < 8; ++j) x[j] = y[j];
}

template <class T>
INLINE void dft9(Complex<T>* x) {
  for (int j = 0; j < 3; ++j) dft3(x[j], x[j + 3], x[j + 6]);
  x[4] = times<T>(x[4], T(0.76604444311897803520), T(-0.64278760968653932632));
  x[5] = times<T>(x[5], T(0.17364817766693034885), T(-0.98480775301220805937));
  x[7] = times<T>(x[7], T(0.17364817766693034885), T(-0.98480775301220805937));
  x[8] = times<T>(x[8], T(-0.93969262078590838405), T(-0.34202014332566873304));
  for (int j = 0; j < 9; j += 3) dft3(x[j], x[j + 1], x[j + 2]);
  Complex<T> y[9] = {x[0], x[3], x[6], x[1], x[4], x[7], x[2], x[5], x[8]};
  for (int j = 0; j < 9; ++j) x[j] = y[j];
}

template <int R, class T>
INLINE void dft(Complex<T>* x) {
  if constexpr (R == 2) dft2(x[0], x[1]);
  if constexpr (R == 3) dft3(x[0], x[1], x[2]);
  if constexpr (R == 4) dft4(x[0], x[1], x[2], x[3]);
  if constexpr (R == 5) dft5(x[0], x[1], x[2], x[3], x[4]);
  if constexpr (R == 8) dft8(x);
  if constexpr (R == 9) dft9(x);
}

// One pass of Stockham's transform: `size` points in `stride` interleaved transforms.
template <class T>
struct Pass {
  int radix, size, stride;
  std::vector<T> twiddles;  // [p][j][re, im]
};

template <class T>
class Plan {
 public:
  explicit Plan(int at_least) : size(good_size(at_least)) {
    int rest = size, stride = 1;
    for (int radix : {9, 8, 5, 4, 3, 2}) {
      while (rest % radix == 0 && rest > 1) {
        Pass<T> pass{radix, rest, stride, {}};
        for (int p = 0; p < rest / radix; ++p)
          for (int j = 0; j < radix; ++j) {
            double angle = -2 * M_PI * (double(p) * j) / rest;
            pass.twiddles.push_back(T(std::cos(angle)));
            pass.twiddles.push_back(T(std::sin(angle)));
          }
        passes.push_back(pass);
        rest /= radix;
        stride *= radix;
      }
    }
  }

  int size;
  std::vector<Pass<T>> passes;

 private:
  static int good_size(int at_least) {
    for (int n = std::max(at_least, 2);; ++n) {
      int rest = n;
      for (int factor : {2, 3, 5})
        while (rest % factor == 0) rest /= factor;
      if (rest == 1) return n;
    }
  }
};

template <int R, class T>
void run_pass(const Pass<T>& pass, const Complex<T>* from, Complex<T>* to) {
  const int m = pass.size / R, s = pass.stride;
  for (int p = 0; p < m; ++p) {
    const T* w = pass.twiddles.data() + 2 * R * p;
    for (int q = 0; q < s; ++q) {
      Complex<T> x[R];
      for (int j = 0; j < R; ++j) x[j] = from[q + s * (p + m * j)];
      dft<R, T>(x);
      to[q + s * R * p] = x[0];
      if (m == 1)
        for (int j = 1; j < R; ++j) to[q + s * (R * p + j)] = x[j];
      else
        for (int j = 1; j < R; ++j)
          to[q + s * (R * p + j)] = times<T>(x[j], w[2 * j], w[2 * j + 1]);
    }
  }
}

// Transforms the first half of the scratch and returns the half that holds the result. Not
// inlined, unlike what feeds it: six radices at each of its callers would compile for a minute.
template <class T>
__attribute__((noinline)) const Complex<T>* run_passes(const Plan<T>& plan, Complex<T>* scratch) {
  Complex<T>*from = scratch, *to = scratch + plan.size;
  for (const Pass<T>& pass : plan.passes) {
    switch (pass.radix) {
      case 2: run_pass<2, T>(pass, from, to); break;
      case 3: run_pass<3, T>(pass, from, to); break;
      case 4: run_pass<4, T>(pass, from, to); break;
      case 5: run_pass<5, T>(pass, from, to); break;
      case 8: run_pass<8, T>(pass, from, to); break;
      default: run_pass<9, T>(pass, from, to);
    }
    std::swap(from, to);
  }
  return from;
}

// Transforms load_at(0..inputs-1), followed by zeros, and passes the first `outputs` results as
// store_at(index, value); `Adjoint` takes F*, by swapping real and imaginary parts.
template <bool Adjoint, class T, class Load, class Store>
INLINE void transform(const Plan<T>& plan, Complex<T>* scratch, int64_t inputs, int64_t outputs,
                      Load load_at, Store store_at) {
  for (int i = 0; i < inputs; ++i) {
    const Complex<T> x = load_at(i);
    scratch[i] = Adjoint ? Complex<T>{x.im, x.re} : x;
  }
  for (int i = inputs; i < plan.size; ++i) scratch[i] = Complex<T>{};
  const Complex<T>* result = run_passes<T>(plan, scratch);
  for (int i = 0; i < outputs; ++i)
    store_at(i, Adjoint ? Complex<T>{result[i].im, result[i].re} : result[i]);
}

// ----------------------------------------------------------------------------------------- layout

struct Sizes {
  int64_t images, height, width, heads, keys, values, field;
};

template <class T>
struct Layout : Sizes {
  Layout(const Sizes& sizes, int slots)
      : Sizes(sizes),
        // As far as a tap can reach within the map, so that no sum wraps round to the other side.
        rows(height + std::min(field / 2, height - 1)),
        columns(width + std::min(field / 2, width - 1)),
        positions(height * width),
        pairs((keys + 1) / 2),
        slots(slots),
        vectors((pairs + slots - 1) / slots),
        groups((values + kLanes<T> - 1) / kLanes<T>),
        half(columns.size / 2 + 1),
        pitch(columns.size + 1),
        spectrum(int64_t(rows.size) * columns.size) {}

  // Where a pair's number at frequency (fx, fy) lies in the spectra, and all of them end.
  int64_t at(int64_t pair, int64_t fx, int64_t fy) const {
    return (((pair / slots * columns.size) + fx) * rows.size + fy) * 2 * slots + pair % slots * 2;
  }
  int64_t vector_size() const { return spectrum * 2 * slots; }

  Plan<T> rows, columns;
  int64_t positions, pairs;
  int64_t slots, vectors;  // pairs in a vector, and vectors of them
  int64_t groups;          // of values, a vector's each
  int64_t half;      // columns of a real map's spectrum; the others are their conjugates
  int64_t pitch;     // of a row in a map; odd, so that a column does not fall into few cache sets
  int64_t spectrum;  // frequencies of a map
};

// Buffers of one thread for one image.
template <class T>
struct Workspace {
  explicit Workspace(const Layout<T>& l, bool backward)
      : map(l.height * l.pitch),
        values(l.half * l.rows.size),
        dvalues(backward ? l.half * l.rows.size : 0),
        row(l.width),
        column(l.rows.size),
        scratch(2 * std::max(l.rows.size, l.columns.size)),
        dots(l.width * l.heads * 2 + kLanes<T>) {}

  Buffer<Complex<T>> map;      // [y][x or fx]
  Buffer<Complex<T>> values;   // v^ [fx][fy]
  Buffer<Complex<T>> dvalues;  // gradient of v^ [fx][fy]
  Buffer<Complex<T>> row, column, scratch;
  Buffer<T> dots;
};

// Kernel spectra, [vector][fx][fy][slot] of (re, im), shared by all images.
template <class T>
using Spectra = std::vector<T>;

// Where tap (dy, dx) of the kernel lies in a pair's map: at minus its offset, round the edge.
template <class T, class Visit>
void each_tap(const Layout<T>& l, Visit visit) {
  const int64_t reach = l.field / 2;
  for (int64_t r = 0; r < l.field; ++r)
    for (int64_t c = 0; c < l.field; ++c) {
      const int64_t dy = r - reach, dx = c - reach;
      if (std::abs(dy) >= l.height || std::abs(dx) >= l.width) continue;  // cannot touch the map
      const int64_t y = (l.rows.size - dy) % l.rows.size;
      const int64_t x = (l.columns.size - dx) % l.columns.size;
      visit(r * l.field + c, y, x);
    }
}

// F(P) / positions of each pair P = W[2j] + i W[2j+1], with the pairs in the lanes.
template <class T>
Spectra<T> kernel_spectra(const Layout<T>& l, const T* kernel) {
  constexpr int L = kLanes<T>;
  const int64_t area = l.field * l.field, ny = l.rows.size, nx = l.columns.size;
  const T scale = T(1) / T(l.spectrum);
  Spectra<T> spectra(l.vectors * l.vector_size());
  Buffer<Complex<T>> map(ny * nx), scratch(2 * std::max(ny, nx));
  Complex<T>* at = map.get();
  for (int64_t first = 0; first < l.pairs; first += L) {
    std::memset(static_cast<void*>(at), 0, ny * nx * sizeof(Complex<T>));
    const int64_t count = std::min<int64_t>(L, l.pairs - first);
    each_tap(l, [&](int64_t tap, int64_t y, int64_t x) {
      for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t k = 2 * (first + lane);
        at[y * nx + x].re[lane] = scale * kernel[k * area + tap];
        if (k + 1 < l.keys) at[y * nx + x].im[lane] = scale * kernel[(k + 1) * area + tap];
      }
    });
    for (int64_t y = 0; y < ny; ++y)
      transform<false, T>(
          l.columns, scratch.get(), nx, nx, [&](int i) INLINED { return at[y * nx + i]; },
          [&](int i, Complex<T> z) INLINED { at[y * nx + i] = z; });
    for (int64_t x = 0; x < nx; ++x)
      transform<false, T>(
          l.rows, scratch.get(), ny, ny, [&](int i) INLINED { return at[i * nx + x]; },
          [&](int i, Complex<T> z) INLINED {
            for (int64_t lane = 0; lane < count; ++lane) {
              T* to = &spectra[l.at(first + lane, x, i)];
              to[0] = z.re[lane];
              to[1] = z.im[lane];
            }
          });
  }
  return spectra;
}

// The kernel's gradient from that of its spectra.
template <class T>
void kernel_gradient(const Layout<T>& l, const Spectra<T>& dspectra, T* dkernel) {
  constexpr int L = kLanes<T>;
  const int64_t area = l.field * l.field, ny = l.rows.size, nx = l.columns.size;
  const T scale = T(1) / T(l.spectrum);
  Buffer<Complex<T>> map(ny * nx), scratch(2 * std::max(ny, nx));
  Complex<T>* at = map.get();
  std::fill_n(dkernel, l.keys * area, T(0));
  for (int64_t first = 0; first < l.pairs; first += L) {
    const int64_t count = std::min<int64_t>(L, l.pairs - first);
    for (int64_t x = 0; x < nx; ++x)
      transform<true, T>(
          l.rows, scratch.get(), ny, ny,
          [&](int i) INLINED {
            Complex<T> z = {};
            for (int64_t lane = 0; lane < count; ++lane) {
              const T* from = &dspectra[l.at(first + lane, x, i)];
              z.re[lane] = from[0];
              z.im[lane] = from[1];
            }
            return z;
          },
          [&](int i, Complex<T> z) INLINED { at[i * nx + x] = z; });
    for (int64_t y = 0; y < ny; ++y)
      transform<true, T>(
          l.columns, scratch.get(), nx, nx, [&](int i) INLINED { return at[y * nx + i]; },
          [&](int i, Complex<T> z) INLINED { at[y * nx + i] = z; });
    each_tap(l, [&](int64_t tap, int64_t y, int64_t x) {
      for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t k = 2 * (first + lane);
        dkernel[k * area + tap] = scale * at[y * nx + x].re[lane];
        if (k + 1 < l.keys) dkernel[(k + 1) * area + tap] = scale * at[y * nx + x].im[lane];
      }
    });
  }
}

// ---------------------------------------------------------------------- one group of one image's v

// In vectors of slots of S lanes; with one slot, of the whole vector, all groups add to dq.
template <class T, int S>
class Group {
  static constexpr int P = kLanes<T> / S;

 public:
  Group(const Layout<T>& layout, const Spectra<T>& spectra, Workspace<T>& workspace, int64_t group)
      : l(layout),
        spectra_(spectra),
        w(workspace),
        first_(group * kLanes<T>),
        count_(int(std::min<int64_t>(S, layout.values - first_))) {}

  // v^ = F(v), half of it.
  void transform_values(const T* v) {
    Complex<T>* map = w.map.get();
    for (int64_t y = 0; y < l.height; ++y) {
      const T* from = v + y * l.width * l.values + first_;
      transform<false, T>(
          l.columns, w.scratch.get(), l.width, l.half,
          [&](int x) INLINED {
            return Complex<T>{load_slots<T, S>(from + x * l.values, count_), Vec<T>{}};
          },
          [&](int fx, Complex<T> z) INLINED { map[y * l.pitch + fx] = z; });
    }
    for (int64_t fx = 0; fx < l.half; ++fx) {
      Complex<T>* to = w.values.get() + fx * l.rows.size;
      column_forward(fx, [&](int fy, Complex<T> z) INLINED { to[fy] = z; });
    }
  }

  // y += q lambda for every vector of pairs of keys.
  void apply(const T* q, const T* content, T* y) {
    for (int64_t vector = 0; vector < l.vectors; ++vector) {
      make_lambdas(vector);
      const Keys keys = keys_of(vector);
      const Complex<T> constant = constant_of(content, keys);
      for (int64_t row = 0; row < l.height; ++row) {
        finish_row(row);
        for (int64_t x = 0; x < l.width; ++x) {
          const int64_t position = row * l.width + x;
          const Complex<T> z = {w.row[x].re + constant.re, w.row[x].im + constant.im};
          const T* q_at = q + position * l.heads * l.keys + keys.first;
          T* y_at = y + position * l.heads * l.values + first_;
          for (int64_t h = 0; h < l.heads; ++h, q_at += l.keys, y_at += l.values) {
            const Complex<T> q_h = load_pairs<T, S>(q_at, keys.count);
            Vec<T> sum = sum_of_slots<T, S>(q_h.re * z.re + q_h.im * z.im);
            if (vector) sum += load<T>(y_at, count_);
            store<T>(y_at, sum, count_);
          }
        }
      }
    }
  }

  // Gradients of all but the kernel, and of the kernel's spectra; adds to dq and dspectra.
  void differentiate(const T* q, const T* content, const T* g, T* dq, T* dv, T* dcontent,
                     T* dspectra) {
    std::memset(static_cast<void*>(w.dvalues.get()), 0,
                l.half * l.rows.size * sizeof(Complex<T>));
    for (int64_t vector = 0; vector < l.vectors; ++vector) {
      make_lambdas(vector);
      const Keys keys = keys_of(vector);
      const Complex<T> constant = constant_of(content, keys);
      Complex<T> total = {};
      for (int64_t row = 0; row < l.height; ++row) {
        finish_row(row);
        differentiate_row(row, keys, constant, q, g, dq, total);
        begin_row(row);
      }
      for (int k = 0; k < keys.count; ++k) {
        const Vec<T> part = k % 2 ? total.im : total.re;
        for (int i = 0; i < count_; ++i)
          dcontent[(keys.first + k) * l.values + first_ + i] = part[k / 2 * S + i];
      }
      differentiate_spectra(vector, dspectra + vector * l.vector_size());
    }
    finish_values(dv);
  }

 private:
  struct Keys {
    int64_t first;
    int count;
  };

  Keys keys_of(int64_t vector) const {
    const int64_t first = vector * 2 * P;
    return {first, int(std::min<int64_t>(2 * P, l.keys - first))};
  }

  Complex<T> constant_of(const T* content, Keys keys) const {
    Complex<T> z = {};
    for (int k = 0; k < keys.count; ++k) {
      Vec<T>& part = k % 2 ? z.im : z.re;
      for (int i = 0; i < count_; ++i)
        part[k / 2 * S + i] = content[(keys.first + k) * l.values + first_ + i];
    }
    return z;
  }

  // v^ at a frequency of the half that is not kept is the conjugate of v^ at minus the frequency.
  template <class Visit>
  INLINE void with_values(int64_t fx, Visit visit) {
    if (fx < l.half) {
      const Complex<T>* from = w.values.get() + fx * l.rows.size;
      visit([=](int fy) INLINED { return from[fy]; });
    } else {
      const Complex<T>* from = w.values.get() + (l.columns.size - fx) * l.rows.size;
      const int ny = l.rows.size;
      visit([=](int fy) INLINED {
        const Complex<T> z = from[fy ? ny - fy : 0];
        return Complex<T>{z.re, -z.im};
      });
    }
  }

  template <class Store>
  INLINE void column_forward(int64_t fx, Store store_at) {
    const Complex<T>* map = w.map.get() + fx;
    transform<false, T>(
        l.rows, w.scratch.get(), l.height, l.rows.size,
        [&](int y) INLINED { return map[y * l.pitch]; }, store_at);
  }

  // Columns of F*(v^ P^) into the map; its rows are still to be transformed.
  void make_lambdas(int64_t vector) {
    const T* kernel = spectra_.data() + vector * l.vector_size();
    for (int64_t fx = 0; fx < l.columns.size; ++fx) {
      const T* k = kernel + fx * l.rows.size * 2 * P;
      Complex<T>* map = w.map.get() + fx;
      with_values(fx, [&](auto values) INLINED {
        transform<true, T>(
            l.rows, w.scratch.get(), l.rows.size, l.height,
            [&](int fy) INLINED {
              return times<T>(values(fy), load_pairs<T, S>(k + 2 * P * fy, 2 * P));
            },
            [&](int y, Complex<T> z) INLINED { map[y * l.pitch] = z; });
      });
    }
  }

  void finish_row(int64_t y) {
    const Complex<T>* from = w.map.get() + y * l.pitch;
    Complex<T>* to = w.row.get();
    transform<true, T>(
        l.columns, w.scratch.get(), l.columns.size, l.width,
        [&](int fx) INLINED { return from[fx]; },
        [&](int x, Complex<T> z) INLINED { to[x] = z; });
  }

  void begin_row(int64_t y) {
    const Complex<T>* from = w.row.get();
    Complex<T>* to = w.map.get() + y * l.pitch;
    transform<false, T>(
        l.columns, w.scratch.get(), l.width, l.columns.size,
        [&](int x) INLINED { return from[x]; },
        [&](int fx, Complex<T> z) INLINED { to[fx] = z; });
  }

  // dq = g lambda, and the lambdas' gradient q g in the lambdas' place.
  void differentiate_row(int64_t row, Keys keys, Complex<T> constant, const T* q, const T* g, T* dq,
                         Complex<T>& total) {
    T* dots = w.dots.get();
    if (P == 1) std::fill_n(dots, l.width * l.heads * 2, T(0));
    LaneSums<T> sums(dots);
    const int64_t queries = l.heads * l.keys, outputs = l.heads * l.values;
    T* dq_at = dq + row * l.width * queries + keys.first;
    for (int64_t x = 0; x < l.width; ++x) {
      const int64_t position = row * l.width + x;
      const Complex<T> z = {w.row[x].re + constant.re, w.row[x].im + constant.im};
      const T* q_at = q + position * queries + keys.first;
      const T* g_at = g + position * outputs + first_;
      Complex<T> dz = {};
      for (int64_t h = 0; h < l.heads; ++h, q_at += l.keys, g_at += l.values) {
        const Vec<T> g_h = load_slots<T, S>(g_at, count_);
        const Complex<T> q_h = load_pairs<T, S>(q_at, keys.count);
        const Complex<T> dq_h = {g_h * z.re, g_h * z.im};
        if constexpr (P == 1) {
          sums.push(dq_h.re);
          sums.push(dq_h.im);
        } else {
          store_pair_sums<T, S>(dq_at + (x * l.heads + h) * l.keys, dq_h, keys.count);
        }
        dz.re += q_h.re * g_h;
        dz.im += q_h.im * g_h;
      }
      w.row[x] = dz;
      total.re += dz.re;
      total.im += dz.im;
    }
    if constexpr (P == 1) {
      sums.flush();
      for (int64_t i = 0; i < l.width * l.heads; ++i)
        for (int k = 0; k < keys.count; ++k) dq_at[i * l.keys + k] += dots[2 * i + k];
    }
  }

  // With dz^ = F(dz): the gradient of P^ is conj(v^) dz^ summed over values, that of v^ conj(P^) dz^.
  void differentiate_spectra(int64_t vector, T* dspectra) {
    const T* kernel = spectra_.data() + vector * l.vector_size();
    const int ny = l.rows.size;
    for (int64_t fx = 0; fx < l.columns.size; ++fx) {
      const T* k = kernel + fx * ny * 2 * P;
      Complex<T>* dz = w.column.get();
      column_forward(fx, [&](int fy, Complex<T> z) INLINED { dz[fy] = z; });
      T* dk = dspectra + fx * ny * 2 * P;
      LaneSums<T> sums(dk);
      const bool is_kept = fx < l.half;
      Complex<T>* dvalues = w.dvalues.get() + (is_kept ? fx : l.columns.size - fx) * ny;
      with_values(fx, [&](auto values) INLINED {
        for (int fy = 0; fy < ny; ++fy) {
          const Complex<T> z = dz[fy], v = values(fy);
          const Complex<T> dp = times<T>(z, {v.re, -v.im});
          if constexpr (P == 1) {
            sums.push(dp.re);
            sums.push(dp.im);
          } else {
            store_pair_sums<T, S>(dk + 2 * P * fy, dp, 2 * P);
          }
          const Complex<T> p = load_pairs<T, S>(k + 2 * P * fy, 2 * P);
          const Complex<T> d = times<T>(z, {p.re, -p.im});
          // Only the real part of F*(dv^) is wanted: conjugates may stand at minus the frequency.
          Complex<T>& to = dvalues[is_kept || fy == 0 ? fy : ny - fy];
          to.re += d.re;
          to.im += is_kept ? d.im : -d.im;
        }
      });
      if constexpr (P == 1) sums.flush();
    }
  }

  // dv = Re F*(dv^).
  void finish_values(T* dv) {
    Complex<T>* map = w.map.get();
    for (int64_t fx = 0; fx < l.half; ++fx) {
      const Complex<T>* from = w.dvalues.get() + fx * l.rows.size;
      transform<true, T>(
          l.rows, w.scratch.get(), l.rows.size, l.height,
          [&](int fy) INLINED { return from[fy]; },
          [&](int y, Complex<T> z) INLINED { map[y * l.pitch + fx] = z; });
    }
    for (int64_t y = 0; y < l.height; ++y) {
      T* to = dv + y * l.width * l.values + first_;
      const Complex<T>* from = map + y * l.pitch;
      transform<true, T>(
          l.columns, w.scratch.get(), l.half, l.width,
          [&](int fx) INLINED { return from[fx]; },
          [&](int x, Complex<T> z) INLINED {
            store<T>(to + x * l.values, sum_of_slots<T, S>(z.re), count_);
          });
    }
  }

  const Layout<T>& l;
  const Spectra<T>& spectra_;
  Workspace<T>& w;
  const int64_t first_;
  const int count_;
};

// ------------------------------------------------------------------------------------- all images

template <class T, int S>
void forward(const Sizes& sizes, int threads, const T* q, const T* v, const T* content,
             const T* kernel, T* y) {
  const Layout<T> l(sizes, kLanes<T> / S);
  const Spectra<T> spectra = kernel_spectra(l, kernel);
#pragma omp parallel num_threads(threads)
  {
    Workspace<T> workspace(l, false);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < l.images * l.groups; ++task) {
      const int64_t b = task / l.groups;
      Group<T, S> group(l, spectra, workspace, task % l.groups);
      group.transform_values(v + b * l.positions * l.values);
      group.apply(q + b * l.positions * l.heads * l.keys, content + b * l.keys * l.values,
                  y + b * l.positions * l.heads * l.values);
    }
  }
}

template <class T, int S>
void backward(const Sizes& sizes, int threads, const T* q, const T* v, const T* content,
              const T* kernel, const T* g, T* dq, T* dv, T* dcontent, T* dkernel) {
  const Layout<T> l(sizes, kLanes<T> / S);
  const Spectra<T> spectra = kernel_spectra(l, kernel);
  const int64_t size = l.vectors * l.vector_size();
  // One per image, not one per thread, so that no sum depends on which thread took which image.
  Buffer<T> dspectra(l.images * size);
  Spectra<T> sum(size);
#pragma omp parallel num_threads(threads)
  {
    Workspace<T> workspace(l, true);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < l.images; ++b) {
      const int64_t queries = l.positions * l.heads * l.keys;
      std::fill_n(dq + b * queries, queries, T(0));
      for (int64_t i = 0; i < l.groups; ++i) {
        Group<T, S> group(l, spectra, workspace, i);
        group.transform_values(v + b * l.positions * l.values);
        group.differentiate(q + b * queries, content + b * l.keys * l.values,
                            g + b * l.positions * l.heads * l.values, dq + b * queries,
                            dv + b * l.positions * l.values, dcontent + b * l.keys * l.values,
                            dspectra.get() + b * size);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < size; ++i) {
      T total = 0;
      for (int64_t b = 0; b < l.images; ++b) total += dspectra[b * size + i];
      sum[i] = total;
    }
  }
  kernel_gradient(l, sum, dkernel);
}

// Calls run with the number of lanes of a slot: the least power of two from 2 on that holds all
// values, or a whole vector.
template <class T, int S = 2, class Run>
void with_slots(const Sizes& sizes, Run run) {
  if constexpr (S < kLanes<T>)
    if (sizes.values > S) return with_slots<T, 2 * S>(sizes, run);
  run(std::integral_constant<int, S>());
}

}  // namespace

extern "C" int labn_vector_bytes() { return kVectorBytes; }

#define EXPORT(T, NAME)                                                                          \
  extern "C" void labn_forward_##NAME(const int64_t* sizes, int threads, const T* q, const T* v, \
                                      const T* content, const T* kernel, T* y) {                 \
    const Sizes& all = *reinterpret_cast<const Sizes*>(sizes);                                   \
    with_slots<T>(all, [&](auto slot) {                                                          \
      forward<T, slot>(all, threads, q, v, content, kernel, y);                                  \
    });                                                                                          \
  }                                                                                              \
  extern "C" void labn_backward_##NAME(const int64_t* sizes, int threads, const T* q,            \
                                       const T* v, const T* content, const T* kernel,            \
                                       const T* g, T* dq, T* dv, T* dcontent, T* dkernel) {      \
    const Sizes& all = *reinterpret_cast<const Sizes*>(sizes);                                   \
    with_slots<T>(all, [&](auto slot) {                                                          \
      backward<T, slot>(all, threads, q, v, content, kernel, g, dq, dv, dcontent, dkernel);      \
    });                                                                                          \
  }
EXPORT(float, float32)
EXPORT(double, float64)
