/* Batch norm, its gradient and the sums for both, of rows of channels that one thread goes over. */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

/* A batch norm. Of arrays as XLA has them, and NULL where there is no norm. */
typedef struct {
  const float *statistics, *scale, *bias; /* [2,C], means and variances; [C]; [C] */
  const float *sums; /* [2,C], on the way back: of the gradient by what the norm gives, and of that times what it takes */
} Norm;

/* z = max(0, (x - mean) · factor + bias), Ioffe and Szegedy 2015, Algorithm 1; [mean, factor, bias]. */
static void find_coefficients(const Norm *norm, float epsilon, int64_t channels, float *found) {
  for (int64_t c = 0; c < channels; ++c) {
    found[c] = norm->statistics[c];
    found[channels + c] = norm->scale[c] / sqrtf(norm->statistics[channels + c] + epsilon);
    found[2 * channels + c] = norm->bias[c];
  }
}

/* The same norm's gradients: those by scale and bias and, of `count` values a channel, dx = slope · g + against · (x - mean)
 * - level, in this order. */
static void find_slopes(const Norm *norm, float epsilon, int64_t count, int64_t channels, float *found, float *by_scale,
                        float *by_bias) {
  for (int64_t c = 0; c < channels; ++c) {
    const float mean = norm->statistics[c], inverse = 1 / sqrtf(norm->statistics[channels + c] + epsilon);
    const float slope = norm->scale[c] * inverse;
    by_bias[c] = norm->sums[c];
    by_scale[c] = (norm->sums[channels + c] - mean * by_bias[c]) * inverse;
    found[c] = slope;
    found[channels + c] = -slope * inverse * by_scale[c] / count;
    found[2 * channels + c] = mean;
    found[3 * channels + c] = slope * by_bias[c] / count;
  }
}

static void normalise(const float *restrict x, int64_t rows, int64_t channels, const float *restrict how,
                      float *restrict z) {
  const float *const mean = how, *const factor = how + channels, *const bias = how + 2 * channels;
  for (; rows; --rows, x += channels, z += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const float value = (x[c] - mean[c]) * factor[c] + bias[c];
      z[c] = value < 0 ? 0 : value; /* what is no number stays none */
    }
}

/* The end of a block: the same of the norm's result and what is added to it, which has a norm where `more` has its
 * coefficients. */
static void end_block(const float *restrict x, const float *restrict addend, int64_t rows, int64_t channels,
                      const float *restrict how, const float *restrict more, float *restrict z) {
  const float *const mean = how, *const factor = how + channels, *const bias = how + 2 * channels;
  for (; rows; --rows, x += channels, addend += channels, z += channels) {
    if (!more)
      for (int64_t c = 0; c < channels; ++c) {
        const float value = (x[c] - mean[c]) * factor[c] + bias[c] + addend[c];
        z[c] = value < 0 ? 0 : value;
      }
    else
      for (int64_t c = 0; c < channels; ++c) {
        const float added = (addend[c] - more[c]) * more[channels + c] + more[2 * channels + c];
        const float value = (x[c] - mean[c]) * factor[c] + bias[c] + added;
        z[c] = value < 0 ? 0 : value;
      }
  }
}

static void descend(const float *restrict g, const float *restrict y, int64_t rows, int64_t channels,
                    const float *restrict how, float *restrict d) {
  const float *const slope = how, *const against = how + channels, *const mean = how + 2 * channels,
                     *const level = how + 3 * channels;
  for (; rows; --rows, g += channels, y += channels, d += channels)
    for (int64_t c = 0; c < channels; ++c) d[c] = slope[c] * g[c] + (against[c] * (y[c] - mean[c]) - level[c]);
}

/* Add to [2,C] the sums of the values less those of the first row, which they are near, and of these differences' squares;
 * four rows at a time: half as many stores. */
static void sum_up(const float *restrict y, int64_t rows, int64_t channels, float *restrict sums) {
  const float *const first = y;
  float *restrict const squares = sums + channels;
  for (; rows >= 4; rows -= 4, y += 4 * channels)
    for (int64_t c = 0; c < channels; ++c) {
      const float one = y[c] - first[c], two = y[channels + c] - first[c], three = y[2 * channels + c] - first[c],
                  four = y[3 * channels + c] - first[c];
      sums[c] += (one + two) + (three + four);
      squares[c] += (one * one + two * two) + (three * three + four * four);
    }
  for (; rows; --rows, y += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const float one = y[c] - first[c];
      sums[c] += one;
      squares[c] += one * one;
    }
}

/* What `sum_up` has found of rows that begin with `first`, as sums of the values and their squares, in double precision: of
 * values far from 0 the difference of the latter's mean and the mean's square is all that tells the variance. */
static void keep_moments(const float *sums, const float *first, int64_t rows, int64_t channels, double *totals) {
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = sums[c], origin = first[c];
    totals[c] += sum + rows * origin;
    totals[channels + c] += sums[channels + c] + 2 * origin * sum + rows * origin * origin;
  }
}

/* Where the ReLU gave 0, the gradient becomes 0. Of the rest, add the sums and those of it times x to those of [2,C].
 * `from` and `to` may be the same. */
static void rectify_and_sum_up(const float *from, const float *restrict z, const float *restrict x, int64_t rows,
                               int64_t channels, float *to, float *restrict sums) {
  float *restrict const products = sums + channels;
  for (; rows; --rows, from += channels, to += channels, z += channels, x += channels)
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) {
      const float value = z[c] > 0 ? from[c] : 0;
      to[c] = value;
      sums[c] += value;
      products[c] += value * x[c];
    }
}

/* The same sums alone. */
static void sum_products_up(const float *restrict g, const float *restrict x, int64_t rows, int64_t channels,
                            float *restrict sums) {
  float *restrict const products = sums + channels;
  for (; rows; --rows, g += channels, x += channels)
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += g[c];
      products[c] += g[c] * x[c];
    }
}

static void add(const float *restrict more, int64_t count, float *restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] += more[i];
}

/* Past the caches, into which otherwise all that is overwritten is read first. */
static void store(const float *restrict from, int64_t count, float *restrict to) {
  int64_t i = 0;
  for (; i < count && ((uintptr_t)(to + i) & 31); ++i) to[i] = from[i];
  for (; i + 8 <= count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
  for (; i < count; ++i) to[i] = from[i];
  _mm_sfence();
}
