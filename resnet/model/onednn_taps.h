/* Convolutions of few outputs in all, with kernels as XLA has them: of each element of the kernel (a tap) one product of
 * matrices, over the outputs that see it inside the map. Threads share channels, not images.
 *
 * oneDNN's convolutions would lay the whole kernel out anew for some hundred outputs, and sum its gradient up over the
 * threads. For the 1×1 kernels of ResNet-50's last stage and 128 outputs, none in the cache, such products alone reached
 * 360 to 560 GFLOP/s on two cores (2026-11-28); what they are worth in a network is in docs/speed-notes.md.
 */
#pragma once
#include "onednn_call.h"
#include "onednn_norms.h"

/* Outputs over the batch, times inputs and outputs of a kernel's element, at most so often what it has of numbers; elements
 * of a kernel; channels that one thread has at least, and multiplications: fewer are done as soon as another thread is
 * found. */
enum { MOST_FOR_A_NUMBER = 11, MOST_TAPS = 9, LEAST_CHANNELS = 16, LEAST_WORK = 1 << 20 };

/* Whether products are faster: for so few outputs the kernel's layout costs more than picking pixels and adding products up. */
static int is_few_for(int64_t outputs, const int64_t *kernel, int64_t groups) {
  const int64_t in = kernel[2], out = kernel[3];
  return groups == 1 && kernel[0] * kernel[1] <= MOST_TAPS && outputs * (in + out) <= MOST_FOR_A_NUMBER * in * out;
}

static int is_few(const Shape *s) { return is_few_for(rows_of(s->output), s->kernel, s->window[GROUPS]); }

/* Evenly spaced pixels of each of a map's images. */
typedef struct {
  int64_t y, x, down, across, high, wide; /* the first one, the steps, and how many */
} Pixels;

/* The outputs that see an element of the kernel inside the map, and what they see; there may be none. */
typedef struct {
  int64_t number;
  Pixels outputs, seen;
} Tap;

/* One convolution, or its gradients: what is NULL is not asked for. */
typedef struct {
  const Shape *shape;
  const float *image, *kernel, *gradient; /* [N,H,W,I], [h,w,I,O] and the gradient by the output [N,H',W',O] */
  float *output, *by_kernel, *by_image;
  const Link *link;    /* in evaluation: its scale and shift */
  const float *addend; /* what is added then, or NULL */
  float *evaluated;    /* and where the result goes; `output` or `addend` maybe */
  int parts, taps;
  Tap tap[MOST_TAPS];
  atomic_int status;
} Products;

/* Of the outputs along an axis the first that sees `tap` inside the map; in `*count`, how many do. */
static int64_t find_outputs(const Shape *s, int axis, int64_t tap, int64_t *count) {
  const int64_t step = s->window[axis], before = s->window[2 + 2 * axis] - tap, size = s->image[1 + axis];
  const int64_t first = before > 0 ? (before + step - 1) / step : 0;
  int64_t end = size - 1 + before < 0 ? 0 : (size - 1 + before) / step + 1;
  if (end > s->output[1 + axis]) end = s->output[1 + axis];
  *count = end > first ? end - first : 0;
  return first;
}

static int64_t count_of(const Pixels *p) { return p->high * p->wide; }

static int is_whole(const Pixels *p, const int64_t *map) {
  return p->high == map[1] && p->wide == map[2] && p->down == 1 && p->across == 1;
}

/* Those that all outputs see come first: their products need not be added to what is there. */
static void find_taps(Products *p) {
  const Shape *s = p->shape;
  for (int64_t i = 0; i < s->kernel[0]; ++i)
    for (int64_t j = 0; j < s->kernel[1]; ++j) {
      Tap found = {.number = i * s->kernel[1] + j, .outputs.down = 1, .outputs.across = 1};
      Pixels *to = &found.outputs, *from = &found.seen;
      to->y = find_outputs(s, 0, i, &to->high);
      to->x = find_outputs(s, 1, j, &to->wide);
      *from = (Pixels){to->y * s->window[0] + i - s->window[2], to->x * s->window[1] + j - s->window[4],
                       s->window[0], s->window[1], to->high, to->wide};
      Tap *place = &p->tap[p->taps++];
      if (is_whole(to, s->output)) *place = *p->tap, place = p->tap;
      *place = found;
    }
}

/* So many channels of these pixels, from the first of `from` on, in a row at `to`. */
static void pick(const float *from, const int64_t *map, const Pixels *p, int64_t channels, float *to) {
  for (int64_t image = 0; image < map[0]; ++image)
    for (int64_t y = p->y; y < p->y + p->high * p->down; y += p->down)
      for (int64_t x = p->x; x < p->x + p->wide * p->across; x += p->across, to += channels)
        memcpy(to, from + ((image * map[1] + y) * map[2] + x) * map[3], channels * sizeof *to);
}

static void add_back(const float *from, const int64_t *map, const Pixels *p, int64_t channels, float *to) {
  for (int64_t image = 0; image < map[0]; ++image)
    for (int64_t y = p->y; y < p->y + p->high * p->down; y += p->down)
      for (int64_t x = p->x; x < p->x + p->wide * p->across; x += p->across, from += channels)
        add(from, channels, to + ((image * map[1] + y) * map[2] + x) * map[3]);
}

static void set_to_nothing(const int64_t *map, int64_t channels, float *to) {
  for (int64_t row = 0; row < rows_of(map); ++row) memset(to + row * map[3], 0, channels * sizeof *to);
}

/* So many channels of the output, from `first` on. */
static int multiply_forward(const Products *p, int64_t first, int64_t channels) {
  const Shape *s = p->shape;
  const int64_t in = s->image[3], out = s->output[3], most = rows_of(s->output);
  float *const seen = own_memory(BETWEEN, most * in * sizeof(float));
  float *const some = own_memory(BETWEEN + 1, most * channels * sizeof(float)), *const output = p->output + first;
  if (!seen || !some) return OUT_OF_MEMORY;
  if (!is_whole(&p->tap->outputs, s->output)) set_to_nothing(s->output, channels, output);
  for (const Tap *tap = p->tap; tap < p->tap + p->taps; ++tap) {
    const int64_t rows = s->image[0] * count_of(&tap->outputs);
    const float *const kernel = p->kernel + tap->number * in * out + first;
    const int as_it_is = is_whole(&tap->seen, s->image), whole = is_whole(&tap->outputs, s->output);
    if (!rows) continue;
    if (!as_it_is) pick(p->image, s->image, &tap->seen, in, seen);
    TRY(dnnl.sgemm('N', 'N', rows, channels, in, 1, as_it_is ? p->image : seen, in, kernel, out, whole && tap > p->tap,
                   whole ? output : some, whole ? out : channels));
    if (!whole) add_back(some, s->output, &tap->outputs, channels, output);
  }
  return SUCCESS;
}

/* The gradients by so many channels of the image, and by what of the kernel they are multiplied by. */
static int multiply_backward(const Products *p, int64_t first, int64_t channels) {
  const Shape *s = p->shape;
  const int64_t in = s->image[3], out = s->output[3], most = rows_of(s->output);
  float *const seen = own_memory(BETWEEN, most * channels * sizeof(float));
  float *const given = own_memory(BETWEEN + 1, most * out * sizeof(float));
  if (!seen || !given) return OUT_OF_MEMORY;
  if (p->by_image && !is_whole(&p->tap->seen, s->image)) set_to_nothing(s->image, channels, p->by_image + first);
  for (const Tap *tap = p->tap; tap < p->tap + p->taps; ++tap) {
    const int64_t rows = s->image[0] * count_of(&tap->outputs), at = (tap->number * in + first) * out;
    const int as_it_is = is_whole(&tap->seen, s->image), whole = is_whole(&tap->outputs, s->output);
    if (!rows && p->by_kernel) memset(p->by_kernel + at, 0, channels * out * sizeof(float));
    if (!rows) continue;
    if (!whole) pick(p->gradient, s->output, &tap->outputs, out, given);
    const float *const gradient = whole ? p->gradient : given;
    if (p->by_kernel) {
      if (!as_it_is) pick(p->image + first, s->image, &tap->seen, channels, seen);
      TRY(dnnl.sgemm('T', 'N', channels, out, rows, 1, as_it_is ? p->image + first : seen, as_it_is ? in : channels,
                     gradient, out, 0, p->by_kernel + at, out));
    }
    if (!p->by_image) continue;
    float *const by_image = p->by_image + first;
    TRY(dnnl.sgemm('N', 'T', rows, channels, out, 1, gradient, out, p->kernel + at, out, as_it_is && tap > p->tap,
                   as_it_is ? by_image : seen, as_it_is ? in : channels));
    if (!as_it_is) add_back(seen, s->image, &tap->seen, channels, by_image);
  }
  return SUCCESS;
}

/* What is behind a convolution in evaluation, of so many channels. */
static void end_evaluated(const Products *p, int64_t first, int64_t channels) {
  const Shape *s = p->shape;
  const float *scale = (const float *)p->link->scale + first, *shift = (const float *)p->link->shift + first;
  for (int64_t row = 0, at = first; row < rows_of(s->output); ++row, at += s->output[3])
    for (int64_t c = 0; c < channels; ++c) {
      const float scaled = p->output[at + c] * scale[c] + shift[c];
      const float value = p->addend ? scaled + p->addend[at + c] : scaled;
      p->evaluated[at + c] = s->window[RELU] && value < 0 ? 0 : value; /* what is no number stays none */
    }
}

static int64_t channels_shared(const Products *p) { return p->output ? p->shape->output[3] : p->shape->image[3]; }

static void do_channels(void *context, int number) {
  Products *p = context;
  const int64_t all = channels_shared(p), units = (all + LEAST_CHANNELS - 1) / LEAST_CHANNELS;
  const int64_t first = number * units / p->parts * LEAST_CHANNELS, next = (number + 1) * units / p->parts;
  const int64_t channels = (next == units ? all : next * LEAST_CHANNELS) - first;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const int status = p->output ? multiply_forward(p, first, channels) : multiply_backward(p, first, channels);
  omp_set_num_threads(threads);
  if (!status && p->evaluated) end_evaluated(p, first, channels);
  if (status) atomic_store(&p->status, status);
}

/* `p` needs its operands and results; the rest is found here. A status of oneDNN's. */
static int multiply_taps(const XLA_FFI_CallFrame *frame, int threads, Products *p) {
  const Shape *s = p->shape;
  const int64_t *k = s->kernel, units = (channels_shared(p) + LEAST_CHANNELS - 1) / LEAST_CHANNELS;
  const int64_t fit = rows_of(s->output) * k[0] * k[1] * k[2] * k[3] / LEAST_WORK;
  int64_t parts = threads < units ? threads : units;
  if (parts > fit) parts = fit;
  p->parts = parts > 1 ? (int)parts : 1;
  find_taps(p);
  if (!do_in_parts(frame, threads, p->parts, do_channels, p)) return OUT_OF_MEMORY;
  return atomic_load(&p->status);
}

/* `convolve`, of one convolution or gradient. */
static int convolve_few(const XLA_FFI_CallFrame *frame, const Shape *s, const Call *call) {
  Products p = {.shape = s, .image = (float *)call->image, .kernel = (float *)call->link->plain};
  float *const output = (float *)call->output;
  if (s->kind == INPUT_GRADIENT) p.by_image = (float *)call->image;
  if (s->kind == WEIGHT_GRADIENT) p.by_kernel = (float *)call->link->plain;
  if (s->kind == INPUT_GRADIENT || s->kind == WEIGHT_GRADIENT)
    p.gradient = output;
  else
    p.output = output;
  if (s->kind >= EVALUATED) {
    p.link = call->link;
    p.evaluated = output;
    p.addend = s->kind == EVALUATED_SUM ? (float *)call->addend : NULL;
    /* XLA leaves the addend where the output goes, see onednn.py. */
    if (p.addend) p.output = own_memory(SHARED, s->image[0] * bytes_of(s->output));
    if (!p.output) return OUT_OF_MEMORY;
  }
  return multiply_taps(frame, threads_of_pool(frame), &p);
}
