/* The end of the stem in training: batch norm, ReLU and 3×3 max pooling with stride 2 and padding 1, and their gradient.
 *
 * XLA goes over the stem's map, the largest of a network, five times for them and keeps a second one of its size. Here
 * it is read once, a few rows at a time, and on the way back read and written once. Nothing of it is oneDNN's.
 */
#include "onednn_buffers.h"
#include "onednn_training.h"

enum { SIDE = 3, STRIDE = 2, WINDOW = SIDE * SIDE };

typedef struct {
  int64_t map[4], pooled[4]; /* [N,H,W,C] and [N,H',W',C] */
  Norm norm;
  float epsilon;
  const float *x, *gradient; /* what the norm takes; back, the gradient by the largest */
  float *largest, *by_norm, *sums; /* forth; back the gradient by what the norm gives and [2,C], its sums */
  uint8_t *first; /* which of a window's elements is the first of the largest, WINDOW where the ReLU gives none but 0 */
  float *coefficients; /* [3,C], forth */
  double *totals; /* [parts,2,C], back */
  int parts, past; /* `by_norm` goes past the caches */
  atomic_int status;
} Pooling;

/* Of all channels. What is no number is larger than all, and stays so. */
static void find_largest(const float *const *at, int64_t channels, float *restrict largest, uint8_t *restrict first) {
#define AT(k) const float *const restrict x##k = at[k];
#define SEE(k)                                        \
  {                                                   \
    const float value = x##k[c];                      \
    const int more = (value > best) | (value != value); \
    best = more ? value : best;                       \
    which = more ? k : which;                         \
  }
  AT(0) AT(1) AT(2) AT(3) AT(4) AT(5) AT(6) AT(7) AT(8)
  for (int64_t c = 0; c < channels; ++c) {
    float best = x0[c];
    int which = 0;
    SEE(1) SEE(2) SEE(3) SEE(4) SEE(5) SEE(6) SEE(7) SEE(8)
    largest[c] = best;
    first[c] = (uint8_t)(best > 0 ? which : WINDOW);
  }
#undef AT
#undef SEE
}

/* An image: rows are normalised one after the other, of which the windows of one row need three. */
static int pool_image(const Pooling *p, int64_t image) {
  const int64_t high = p->map[1], wide = p->map[2], channels = p->map[3], row = wide * channels;
  float *const rows = own_memory(BETWEEN, (SIDE * row + channels) * sizeof(float)), *const outside = rows + SIDE * row;
  if (!rows) return OUT_OF_MEMORY;
  for (int64_t c = 0; c < channels; ++c) outside[c] = -INFINITY;
  const int64_t places = p->pooled[1] * p->pooled[2] * channels;
  float *largest = p->largest + image * places;
  uint8_t *first = p->first + image * places;
  int64_t ready = 0;
  for (int64_t a = 0; a < p->pooled[1]; ++a) {
    const int64_t top = STRIDE * a - 1;
    for (; ready < top + SIDE && ready < high; ++ready)
      normalise(p->x + (image * high + ready) * row, wide, channels, p->coefficients, rows + ready % SIDE * row);
    for (int64_t b = 0; b < p->pooled[2]; ++b, largest += channels, first += channels) {
      const float *at[WINDOW];
      for (int k = 0; k < WINDOW; ++k) {
        const int64_t i = top + k / SIDE, j = STRIDE * b - 1 + k % SIDE;
        const int inside = i >= 0 && i < high && j >= 0 && j < wide;
        at[k] = inside ? rows + i % SIDE * row + j * channels : outside;
      }
      find_largest(at, channels, largest, first);
    }
  }
  return SUCCESS;
}

/* What a pixel takes of a window that sees it as its element `which`. */
typedef struct {
  const float *g;
  const uint8_t *first;
  uint8_t which;
} Seen;

/* Of all channels of a pixel, from the one, two or four windows that see it. Terms are added in the order of pooling.py. */
static void take_back(const Seen *seen, int count, int64_t channels, float *restrict to) {
#define FROM(k) const float *const restrict g##k = seen[k].g; const uint8_t *const restrict first##k = seen[k].first; \
                const uint8_t which##k = seen[k].which;
#define TERM(k) (first##k[c] == which##k ? g##k[c] : 0)
  FROM(0)
  if (count == 1) {
    for (int64_t c = 0; c < channels; ++c) to[c] = TERM(0);
    return;
  }
  FROM(1)
  if (count == 2) {
    for (int64_t c = 0; c < channels; ++c) to[c] = TERM(0) + TERM(1);
    return;
  }
  FROM(2) FROM(3)
  for (int64_t c = 0; c < channels; ++c) to[c] = TERM(0) + TERM(1) + TERM(2) + TERM(3);
#undef FROM
#undef TERM
}

/* Along one axis: which windows see the place, and as which of their three; a place before every second window is the last
 * of one and the first of the next. */
static int find_windows(int64_t place, int64_t *windows, int *as) {
  windows[0] = (place + 1) / STRIDE, as[0] = (place + 1) % STRIDE;
  windows[1] = windows[0] - 1, as[1] = 2;
  return as[0] ? 1 : 2;
}

static int gather_image(const Pooling *p, int64_t image, double *totals) {
  const int64_t high = p->map[1], wide = p->map[2], channels = p->map[3], row = wide * channels;
  float *const apart = own_memory(BETWEEN, row * sizeof(float) + channels);
  float *const sums = own_memory(SUMS, 2 * channels * sizeof(float));
  if (!apart || !sums) return OUT_OF_MEMORY;
  uint8_t *const outside = memset(apart + row, WINDOW, channels);
  memset(sums, 0, 2 * channels * sizeof *sums);
  for (int64_t i = 0; i < high; ++i) {
    const int64_t at = (image * high + i) * row;
    float *const near = p->past ? apart : p->by_norm + at;
    int64_t down[2], right[2];
    int as_row[2], as_column[2];
    const int rows = find_windows(i, down, as_row);
    for (int64_t j = 0; j < wide; ++j) {
      Seen seen[4];
      const int columns = find_windows(j, right, as_column);
      for (int k = 0; k < rows * columns; ++k) {
        const int r = k / columns, l = k % columns;
        const int inside = down[r] >= 0 && down[r] < p->pooled[1] && right[l] >= 0 && right[l] < p->pooled[2];
        const int64_t window = ((image * p->pooled[1] + down[r]) * p->pooled[2] + right[l]) * channels;
        seen[k] = (Seen){inside ? p->gradient + window : p->gradient, inside ? p->first + window : outside,
                         (uint8_t)(SIDE * as_row[r] + as_column[l])};
      }
      take_back(seen, rows * columns, channels, near + j * channels);
    }
    sum_products_up(near, p->x + at, wide, channels, sums);
    if (p->past) store(near, row, p->by_norm + at);
  }
  keep(sums, channels, totals);
  return SUCCESS;
}

static void pool_part(void *context, int part) {
  Pooling *p = context;
  const int64_t images = p->map[0];
  for (int64_t image = part * images / p->parts; image < (part + 1) * images / p->parts; ++image) {
    const int status = p->largest ? pool_image(p, image) : gather_image(p, image, p->totals + part * 2 * p->map[3]);
    if (status) atomic_store(&p->status, status);
  }
}

/* NULL, or what is wrong. */
static const char *read_pooling(const XLA_FFI_CallFrame *frame, int back, Pooling *p) {
  Buffers operands = {operands_of(frame), frame->args.size, 0};
  Buffers results = {(const XLA_FFI_Buffer *const *)frame->rets.rets, frame->rets.size, 0};
  const XLA_FFI_Scalar *epsilon = frame->attrs.size == 1 ? frame->attrs.attrs[0] : NULL;
  if (!epsilon || frame->attrs.types[0] != XLA_FFI_AttrType_SCALAR || epsilon->dtype != XLA_FFI_DataType_F32)
    return "takes an epsilon of float32";
  if (!operands.left || !is_array(*operands.next, 4)) return "takes float32 arrays of four dimensions";
  const int64_t *const map = memcpy(p->map, (*operands.next)->dims, sizeof p->map);
  const int64_t pooled[] = {map[0], (map[1] - 1) / STRIDE + 1, (map[2] - 1) / STRIDE + 1, map[3]}, pair[] = {2, map[3]};
  memcpy(p->pooled, pooled, sizeof pooled);
  p->epsilon = *(const float *)epsilon->value;
  p->x = take(&operands, 4, map);
  if (back) {
    p->gradient = take(&operands, 4, pooled);
    p->first = take_typed(&operands, XLA_FFI_DataType_U8, 4, pooled);
    p->by_norm = take(&results, 4, map);
    p->sums = take(&results, 2, pair);
  } else {
    p->norm = take_whole_norm(&operands, map[3]);
    p->largest = take(&results, 4, pooled);
    p->first = take_typed(&results, XLA_FFI_DataType_U8, 4, pooled);
  }
  if (operands.wrong || operands.left) return "takes other operands";
  return results.wrong || results.left ? "gives other results" : NULL;
}

static int pool(const XLA_FFI_CallFrame *frame, int back, const char **wrong) {
  Pooling p;
  memset(&p, 0, sizeof p);
  *wrong = read_pooling(frame, back, &p);
  if (*wrong) return SUCCESS;
  const int threads = threads_of_pool(frame);
  const int64_t channels = p.map[3];
  p.parts = p.map[0] < threads ? (int)p.map[0] : threads;
  const size_t size = back ? p.parts * 2 * channels * sizeof(double) : 3 * channels * sizeof(float);
  void *const memory = own_memory(LAID_OUT, size);
  if (!memory) return OUT_OF_MEMORY;
  p.past = p.map[0] * size_of(p.map) * (int64_t)sizeof(float) >= LARGE_RESULT;
  p.totals = back ? memset(memory, 0, size) : NULL;
  p.coefficients = back ? NULL : memory;
  if (!back) find_coefficients(&p.norm, p.epsilon, channels, p.coefficients);
  if (!do_in_parts(frame, threads, p.parts, pool_part, &p)) return OUT_OF_MEMORY;
  if (back) find_totals(p.totals, p.parts, channels, 0, p.sums);
  return atomic_load(&p.status);
}
