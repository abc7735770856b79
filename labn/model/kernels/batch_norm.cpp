// Batch norm by the batch's statistics, with the shortcut and the ReLU that follow it in a residual
// network. Forward and backward each read their inputs twice, and write once.
//
//   y = relu(weight (x - mean) / sqrt(variance + eps) + bias + shortcut)
//
// x, y, shortcut and their gradients are rows of channels: the channels last. Rows of x lie
// `x_stride` numbers apart, the others' follow one another. Statistics, weight and bias are float.
//
// Rows are processed in blocks whose sums are added in order: results do not depend on the number
// of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Sizes {
  int64_t rows, channels, x_stride, relu;

  // A few tens of kB, so that a second pass finds them in a cache.
  int64_t block_rows() const { return std::max<int64_t>(32, 8192 / channels); }
  int64_t num_blocks() const { return (rows + block_rows() - 1) / block_rows(); }
  int64_t begin(int64_t block) const { return block * block_rows(); }
  int64_t end(int64_t block) const { return std::min(rows, begin(block + 1)); }
};

struct bfloat16 {
  uint16_t bits;
};

#define INLINE inline __attribute__((always_inline))

INLINE float read(float x) { return x; }
INLINE float read(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

INLINE void write(float& to, float x) { to = x; }
INLINE void write(bfloat16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  to.bits = x == x ? rounded : 0x7fc0;
}

constexpr int64_t kChunk = 16;  // channels that are summed together

// Sums two numbers per channel over the blocks, in double.
template <class Use>
void add_blocks(const Sizes& s, int threads, const std::vector<float>& parts, Use use) {
  const int64_t width = s.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < width; start += kChunk) {
    const int64_t count = std::min(kChunk, width - start);
    double a[kChunk] = {}, b[kChunk] = {};
    for (int64_t i = 0; i < s.num_blocks(); ++i) {
      const float* part = parts.data() + i * 2 * width + start;
      for (int64_t c = 0; c < count; ++c) {
        a[c] += part[c];
        b[c] += part[width + c];
      }
    }
    use(start, count, a, b);
  }
}

template <class X>
void moments(const Sizes& s, int threads, const X* x, float* mean, float* variance) {
  const int64_t blocks = s.num_blocks(), width = s.channels;
  // Of each block the mean, and the sum of squares about it.
  std::vector<float> parts(blocks * 2 * width);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < blocks; ++i) {
    float* __restrict center = parts.data() + i * 2 * width;
    float* __restrict square = center + width;
    for (int64_t r = s.begin(i); r < s.end(i); ++r) {
      const X* __restrict row = x + r * s.x_stride;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) center[c] += read(row[c]);
    }
    const float share = 1.0f / (s.end(i) - s.begin(i));
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) center[c] *= share;
    for (int64_t r = s.begin(i); r < s.end(i); ++r) {
      const X* __restrict row = x + r * s.x_stride;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float d = read(row[c]) - center[c];
        square[c] += d * d;
      }
    }
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < width; start += kChunk) {
    const int64_t count = std::min(kChunk, width - start);
    double total[kChunk] = {}, square[kChunk] = {};
    for (int64_t i = 0; i < blocks; ++i) {
      const float* part = parts.data() + i * 2 * width + start;
      const double rows = s.end(i) - s.begin(i);
      for (int64_t c = 0; c < count; ++c) total[c] += rows * part[c];
    }
    for (int64_t c = 0; c < count; ++c) total[c] /= s.rows;
    for (int64_t i = 0; i < blocks; ++i) {
      const float* part = parts.data() + i * 2 * width + start;
      const double rows = s.end(i) - s.begin(i);
      for (int64_t c = 0; c < count; ++c) {
        const double d = part[c] - total[c];
        square[c] += part[width + c] + rows * d * d;
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      mean[start + c] = total[c];
      variance[start + c] = square[c] / s.rows;
    }
  }
}

// Factor and offset of a channel.
void line(const Sizes& s, const float* mean, const float* rstd, const float* weight,
          const float* bias, float* __restrict scale, float* __restrict shift) {
  for (int64_t c = 0; c < s.channels; ++c) {
    scale[c] = weight[c] * rstd[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
}

template <bool kRelu, bool kShortcut, class X, class Y>
void apply_rows(const Sizes& s, int threads, const X* x, const Y* shortcut, const float* scale_,
                const float* shift_, Y* y) {
  const int64_t width = s.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.num_blocks(); ++i) {
    const float *__restrict scale = scale_, *__restrict shift = shift_;
    for (int64_t r = s.begin(i); r < s.end(i); ++r) {
      const X* __restrict from = x + r * s.x_stride;
      const Y* __restrict other = kShortcut ? shortcut + r * width : nullptr;
      Y* __restrict to = y + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        float value = std::fma(read(from[c]), scale[c], shift[c]);
        if (kShortcut) value += read(other[c]);
        // Not std::max, which would turn NaN into a number.
        if (kRelu) value = value < 0 ? 0 : value;
        write(to[c], value);
      }
    }
  }
}

template <class X, class Y>
void apply(const Sizes& s, int threads, const X* x, const Y* shortcut, const float* mean,
           const float* rstd, const float* weight, const float* bias, Y* y) {
  std::vector<float> scale(s.channels), shift(s.channels);
  line(s, mean, rstd, weight, bias, scale.data(), shift.data());
  const auto run = s.relu ? (shortcut ? apply_rows<true, true, X, Y> : apply_rows<true, false, X, Y>)
                          : (shortcut ? apply_rows<false, true, X, Y>
                                      : apply_rows<false, false, X, Y>);
  run(s, threads, x, shortcut, scale.data(), shift.data(), y);
}

// The gradient before the ReLU: where the result was not cut off. With a shortcut that is read from
// y, else from x.
template <bool kRelu, bool kShortcut, class X, class Y>
INLINE float inner(X x, Y y, Y g, float scale, float shift) {
  const float gradient = read(g);
  if (!kRelu) return gradient;
  const float value = kShortcut ? read(y) : std::fma(read(x), scale, shift);
  return value > 0 ? gradient : 0;
}

template <bool kRelu, bool kShortcut, class X, class Y>
void differentiate_rows(const Sizes& s, int threads, const X* x, const Y* y, const Y* g,
                        const float* mean_, const float* rstd_, const float* weight,
                        const float* bias, X* dx, Y* dshortcut, float* dweight, float* dbias) {
  const int64_t width = s.channels;
  std::vector<float> lines(4 * width);
  float *scale_ = lines.data(), *shift_ = scale_ + width, *a_ = shift_ + width, *b_ = a_ + width;
  line(s, mean_, rstd_, weight, bias, scale_, shift_);
  std::vector<float> parts(s.num_blocks() * 2 * width);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.num_blocks(); ++i) {
    const float *__restrict scale = scale_, *__restrict shift = shift_, *__restrict mean = mean_;
    float* __restrict sum = parts.data() + i * 2 * width;
    float* __restrict product = sum + width;
    for (int64_t r = s.begin(i); r < s.end(i); ++r) {
      const X* __restrict from = x + r * s.x_stride;
      const Y *__restrict out = kShortcut && kRelu ? y + r * width : g + r * width,
              *__restrict gradient = g + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float d =
            inner<kRelu, kShortcut, X, Y>(from[c], out[c], gradient[c], scale[c], shift[c]);
        sum[c] += d;
        product[c] += d * (read(from[c]) - mean[c]);
      }
    }
  }
  // dx = scale (d - mean of d - x^ mean of d x^), x^ = (x - mean) rstd, as scale d + a x + b.
  add_blocks(s, threads, parts, [&](int64_t start, int64_t count, double* sum, double* product) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = start + i;
      dbias[c] = sum[i];
      dweight[c] = product[i] * rstd_[c];
      a_[c] = -scale_[c] * rstd_[c] * (dweight[c] / s.rows);
      b_[c] = -scale_[c] * (sum[i] / s.rows) - double(a_[c]) * mean_[c];
    }
  });
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.num_blocks(); ++i) {
    const float *__restrict scale = scale_, *__restrict shift = shift_, *__restrict a = a_,
                *__restrict b = b_;
    for (int64_t r = s.begin(i); r < s.end(i); ++r) {
      const X* __restrict from = x + r * s.x_stride;
      const Y *__restrict out = kShortcut && kRelu ? y + r * width : g + r * width,
              *__restrict gradient = g + r * width;
      X* __restrict to = dx + r * width;
      Y* __restrict other = kShortcut ? dshortcut + r * width : nullptr;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float d =
            inner<kRelu, kShortcut, X, Y>(from[c], out[c], gradient[c], scale[c], shift[c]);
        if (kShortcut) write(other[c], d);
        write(to[c], std::fma(scale[c], d, std::fma(a[c], read(from[c]), b[c])));
      }
    }
  }
}

template <class X, class Y>
void forward(const Sizes& s, int threads, const X* x, const Y* shortcut, const float* weight,
             const float* bias, double eps, Y* y, float* mean, float* rstd, float* variance) {
  moments(s, threads, x, mean, variance);
  for (int64_t c = 0; c < s.channels; ++c) rstd[c] = 1 / std::sqrt(variance[c] + eps);
  apply(s, threads, x, shortcut, mean, rstd, weight, bias, y);
}

template <class X, class Y>
void backward(const Sizes& s, int threads, const X* x, const Y* y, const Y* g, const float* mean,
              const float* rstd, const float* weight, const float* bias, X* dx, Y* dshortcut,
              float* dweight, float* dbias) {
  const auto run = s.relu ? (dshortcut ? differentiate_rows<true, true, X, Y>
                                       : differentiate_rows<true, false, X, Y>)
                          : (dshortcut ? differentiate_rows<false, true, X, Y>
                                       : differentiate_rows<false, false, X, Y>);
  run(s, threads, x, y, g, mean, rstd, weight, bias, dx, dshortcut, dweight, dbias);
}

}  // namespace

#define EXPORT(X, Y, NAME)                                                                       \
  extern "C" void labn_norm_forward_##NAME(                                                      \
      const int64_t* sizes, int threads, double eps, const X* x, const Y* shortcut,              \
      const float* weight, const float* bias, Y* y, float* mean, float* rstd, float* variance) { \
    forward<X, Y>(*reinterpret_cast<const Sizes*>(sizes), threads, x, shortcut, weight, bias,    \
                  eps, y, mean, rstd, variance);                                                 \
  }                                                                                              \
  extern "C" void labn_norm_apply_##NAME(const int64_t* sizes, int threads, double, const X* x,  \
                                         const Y* shortcut, const float* mean,                   \
                                         const float* rstd, const float* weight,                 \
                                         const float* bias, Y* y) {                              \
    apply<X, Y>(*reinterpret_cast<const Sizes*>(sizes), threads, x, shortcut, mean, rstd,        \
                weight, bias, y);                                                                \
  }                                                                                              \
  extern "C" void labn_norm_backward_##NAME(                                                     \
      const int64_t* sizes, int threads, double, const X* x, const Y* y, const Y* g,             \
      const float* mean, const float* rstd, const float* weight, const float* bias, X* dx,       \
      Y* dshortcut, float* dweight, float* dbias) {                                              \
    backward<X, Y>(*reinterpret_cast<const Sizes*>(sizes), threads, x, y, g, mean, rstd, weight, \
                   bias, dx, dshortcut, dweight, dbias);                                         \
  }
EXPORT(float, float, float32_float32)
EXPORT(float, bfloat16, float32_bfloat16)
EXPORT(bfloat16, float, bfloat16_float32)
EXPORT(bfloat16, bfloat16, bfloat16_bfloat16)
